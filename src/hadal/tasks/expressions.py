"""Mathematical expressions, read from LaTeX or plain text by recursive descent."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

FUNCTIONS = set("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log lg exp".split())
_CONSTANTS = {"pi": "pi", "e": "e", "i": "i", "infty": "infty", "infinity": "infty"}
_GREEK = set("alpha beta gamma delta epsilon theta lambda mu nu rho sigma tau phi varphi psi omega".split())
_GROUPS = {
    "(": ("group", ")"), "{": ("group", "}"), "|": ("abs", "|"),
    "\\lfloor": ("floor", "\\rfloor"), "\\lceil": ("ceil", "\\rceil"),
}  # fmt: skip
_TIMES = ("\\cdot", "\\times", "*", "\\ast")
_SPELLINGS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"√\s*(\d+(?:\.\d+)?|[A-Za-zπ])", r"\\sqrt{\1}"), (r"√", r"\\sqrt "), (r"π", r"\\pi "), (r"∞", r"\\infty "),
        (r"[×✕]", r"\\times "), (r"[·⋅∙]", r"\\cdot "), (r"÷", r"\\div "), (r"\*\*", "^"),
        (r"\\(?:displaystyle|limits|,|;|:|!| )|\\(?:left|right|big|Big)(?![A-Za-z])", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"), (r"\\tbinom|\\dbinom", r"\\binom"),
    )
]  # fmt: skip
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?|\.\d+)|(\\(?:[A-Za-z]+|[{}|]))|([A-Za-z]+)|(\S))")


class Unreadable(ValueError):
    """A text that is no expression of this kind, or one that is too large."""


@dataclass(frozen=True)
class Node:
    """An operation on others; `name` is a variable, a function, or a number as it was written."""

    op: str
    args: tuple[Node, ...] = ()
    name: str = ""

    @property
    def variables(self) -> frozenset[str]:
        own = frozenset([self.name]) if self.op == "variable" else frozenset()
        return own.union(*(arg.variables for arg in self.args))


def read(text: str) -> Node:
    """The expression in a text; Unreadable where it is none, or anything stands beside it."""
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda raised: f"^{{{raised[0].translate(_RAISED)}}}", text)
    reader = _Reader([next(part for part in match if part) for match in _TOKEN.findall(text)])
    try:
        found = reader.sum()
    except RecursionError:
        raise Unreadable("nested too deeply") from None
    if reader.next:
        raise Unreadable(f"{reader.next} stands beside it")
    return found


class _Reader:
    """A reader by recursive descent."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at = tokens, 0

    @property
    def next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, *wanted: str) -> str:
        """The next token, if it is one of these; else nothing, and it stays."""
        if not self.next or (wanted and self.next not in wanted):
            return ""
        self.at += 1
        return self.tokens[self.at - 1]

    def need(self, wanted: str) -> None:
        if not self.take(wanted):
            raise Unreadable(f"no {wanted}")

    def sum(self) -> Node:
        terms = [self.signed()]
        while sign := self.take("+", "-"):
            term = self.product()
            terms.append(term if sign == "+" else Node("minus", (term,)))
        return terms[0] if len(terms) == 1 else Node("add", tuple(terms))

    def signed(self) -> Node:
        if self.take("-"):
            return Node("minus", (self.signed(),))
        self.take("+")
        return self.product()

    def product(self) -> Node:
        left = self.power()
        while True:
            if self.take(*_TIMES):
                left = _times(left, self.signed_power())
            elif sign := self.take("/", "\\div"):
                left = Node("over" if sign == "/" else "divided", (left, self.signed_power()))
            elif self.begins_a_factor():
                left = _times(left, self.power())
            else:
                return left

    def signed_power(self) -> Node:
        return Node("minus", (self.signed_power(),)) if self.take("-") else self.power()

    def begins_a_factor(self) -> bool:
        """A number right behind a factor is none: 5 6 is two numbers."""
        token = self.next
        return token in ("(", "{", "\\sqrt", "\\frac", "\\binom") or token.lstrip("\\").isalpha() and _known(token)

    def power(self) -> Node:
        base = self.atom()
        while True:
            if self.take("!"):
                base = Node("factorial", (base,))
            elif self.take("%"):
                base = Node("over", (base, Node("number", name="100")))
            elif self.take("degrees", "degree"):
                base = Node("degrees", (base,))
            elif self.take("^"):
                base = Node("power", (base, self.argument(whole=True)))
            else:
                return base

    def argument(self, whole: bool = False) -> Node:
        """A group in braces, or a single token as TeX takes it: of 12 the 1, but where plain text writes 2^10."""
        if self.take("{"):
            inner = self.sum()
            self.need("}")
            return inner
        if whole and self.take("-"):
            return Node("minus", (self.argument(whole),))
        if self.next.isdecimal() and len(self.next) > 1 and not whole:
            self.tokens[self.at : self.at + 1] = [self.next[0], self.next[1:]]
        return self.atom()

    def atom(self) -> Node:
        token = self.take()
        if not token:
            raise Unreadable("it breaks off")
        if token[0].isdecimal() or token[0] == ".":
            return self.number(token)
        if token in _GROUPS:
            op, closing = _GROUPS[token]
            inner = self.sum()
            self.need(closing)
            return Node(op, (inner,))
        word = token.lstrip("\\")
        if word == "frac":
            return Node("over", (self.argument(), self.argument()))
        if word == "binom":
            return Node("binomial", (self.argument(), self.argument()))
        if word == "sqrt":
            return self.root()
        if word in FUNCTIONS:
            return self.function(word)
        if word in _CONSTANTS:
            return Node("constant", name=_CONSTANTS[word])
        if token.isalpha() and len(token) > 1 and _known(token):  # ab is a product
            self.tokens[self.at : self.at] = list(token[1:])
            word = token[0]
            return Node("constant", name=word) if word in _CONSTANTS else self.variable(word)
        if not _known(token):
            raise Unreadable(f"{token} is not known")
        return self.variable(word)

    def variable(self, name: str) -> Node:
        if self.take("_"):
            parts = []
            if self.take("{"):
                while not self.take("}"):
                    parts.append(self.take() or self._end())
            else:
                parts.append(self.take() or self._end())
            name += "_" + "".join(parts)
        return Node("variable", name=name)

    def _end(self) -> str:
        raise Unreadable("it breaks off")

    def number(self, token: str) -> Node:
        if self.take("_"):  # 52_8
            base = self.argument(whole=True)
            if base.op != "number" or "." in token or not 2 <= int(Fraction(base.name)) <= 36:
                raise Unreadable("no base")
            return Node("based", (base,), token)
        number = Node("number", name=token)
        if self.next == "\\frac" and "." not in token:  # 2 1/2
            at = self.at
            fraction = self.atom()
            if all(arg.op == "number" and "." not in arg.name for arg in fraction.args):
                return Node("mixed", (number, fraction))
            self.at = at
        return number

    def root(self) -> Node:
        degree = Node("number", name="2")
        if self.take("["):
            degree = self.sum()
            self.need("]")
        if self.take("("):
            inner = self.sum()
            self.need(")")
            return Node("root", (inner, degree))
        return Node("root", (self.argument(), degree))

    def function(self, name: str) -> Node:
        base = self.argument() if name == "log" and self.take("_") else None
        raised = self.argument(whole=True) if self.take("^") else None
        if raised == Node("minus", (Node("number", name="1"),)):
            name, raised = f"arc{name}", None
        if name not in FUNCTIONS:
            raise Unreadable(f"{name} is not known")
        if self.next in ("(", "{"):
            argument = self.atom()
        else:
            argument = self.signed_power()
            while self.begins_a_factor() and self.next.lstrip("\\") not in FUNCTIONS:
                argument = _times(argument, self.power())
        called = Node("call", (argument,) if base is None else (argument, base), name)
        return called if raised is None else Node("power", (called, raised))


def _known(token: str) -> bool:
    word = token.lstrip("\\")
    if token.startswith("\\"):
        return word in FUNCTIONS or word in _CONSTANTS or word in _GREEK or word in ("sqrt", "frac", "binom")
    return len(word) <= 3 or word in FUNCTIONS or word in ("sqrt", "infinity", "degrees", "degree")


def _times(left: Node, right: Node) -> Node:
    return Node("times", (*(left.args if left.op == "times" else (left,)), right))
