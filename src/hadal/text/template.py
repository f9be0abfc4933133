"""Chat templates of tokenizers: Jinja programs by strangers, run in a sandbox and turned into pieces of a prompt.

What is a control token in a prompt is decided by who wrote it. A template's own text and its `bos_token` and the
like may spell control tokens, the messages may not. So the template's program is changed before it runs: control
tokens in the literals that it prints are replaced by marks that nobody can guess. Whatever the template then does
with a message (trims, splits, replaces, joins), no mark can come out of it; what is no mark is text. Literals that
the template computes with (`content.split('</think>')`) stay as they are. Each prompt is also rendered by the
unchanged program; where the two differ in anything but the marks, the template is refused.

A render has a budget of steps and characters and a deadline, and what could spend them in one step (`'a' * n`,
`'%9999d'`, powers, `center`) is priced before it runs or not there at all.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hadal.errors import UserError
from hadal.text.calls import CallShapes, called

Piece = str | int
"""A part of a prompt: text, or the id of a control token."""

MAX_SOURCE = 1_000_000
STEP = 50  # what a step costs, in characters; an item of a list costs as much as a pointer
FILTERS = (
    "abs capitalize count d default dictsort first float int items join last length list lower map max min "
    "reject rejectattr replace reverse round safe select selectattr sort string sum title tojson trim unique upper"
).split()
METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        "capitalize count endswith find index isalpha isalnum isdigit islower isnumeric isspace istitle isupper join "
        "lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split "
        "splitlines startswith strip title upper".split()
    ),
    dict: frozenset("copy get items keys values".split()),
    list: frozenset("copy count index".split()),
    tuple: frozenset("count index".split()),
    int: frozenset(),
    float: frozenset(),
    bytes: frozenset(),
}


class _Spent(Exception):
    """A render has used up what it may use."""


@dataclass
class _Budget:
    left: float
    deadline: float

    def spend(self, amount: float) -> None:
        self.left -= amount + STEP
        if self.left < 0 or time.monotonic() > self.deadline:
            raise _Spent


_BUDGET: ContextVar[_Budget] = ContextVar("budget")


def _spend(amount: float) -> None:
    _BUDGET.get().spend(amount)


def _size(value: Any) -> int:
    """Characters and items that a value holds, nested ones included."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(16 + _size(k) + _size(v) for k, v in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return sum(8 + _size(item) for item in value)
    return 1


def _spend_join(separator: str, items: Iterable[Any]) -> list[Any]:
    held = list(items)
    _spend(_size(held) + len(separator) * len(held))
    return held


def _spend_replace(text: str, old: str, new: str) -> None:
    times = text.count(old) if old else len(text) + 1
    _spend(len(text) + times * len(new))


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with a price on everything that can take time or memory."""

    intercepted_binops = frozenset(["+", "*", "%", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
            optimized=False,  # nothing is computed while compiling, where no budget holds
            finalize=self._printed,
        )
        known = {name: self.filters[name] for name in FILTERS} | {"tojson": _tojson}
        self.filters = {name: self._priced(name, run) for name, run in known.items()}
        self.filters["_counted"] = _counted
        self.globals = {
            "range": self.globals["range"], "dict": dict, "namespace": self.globals["namespace"],
            "raise_exception": _raise,
        }  # fmt: skip

    @staticmethod
    def _printed(value: Any) -> Any:
        _spend(_size(value))
        return value

    @staticmethod
    def _priced(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        # Jinja hands some filters its context or environment first, told by a mark on the function.
        mark = getattr(run, "jinja_pass_arg", None)
        passed = 0 if mark is None else 1

        def priced(*args: Any, **settings: Any) -> Any:
            _spend(_size(args[passed:]))
            if name == "join":
                separator = settings.get("d", args[passed + 1] if len(args) > passed + 1 else "")
                args = (*args[:passed], _spend_join(str(separator), args[passed]), *args[passed + 1 :])
            if name == "replace":
                _spend_replace(*(str(text) for text in args[passed : passed + 3]))
            result = run(*args, **settings)
            _spend(_size(result))
            return result

        if mark is not None:
            priced.jinja_pass_arg = mark  # type: ignore[attr-defined]
        return priced

    def concat(self, parts: Iterable[str]) -> str:
        held = []
        for part in parts:
            _spend(len(part))
            held.append(part)
        return "".join(held)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (operator == "%" and isinstance(left, str | bytes)):
            raise ValueError(f"{operator} is not for templates")
        if operator == "*":
            for factor, many in ((left, right), (right, left)):
                if isinstance(factor, int) and isinstance(many, str | list | tuple):
                    _spend(max(factor, 0) * _size(many))
            if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > 256:
                raise ValueError("the numbers grow too large")
        else:
            _spend(_size(left) + _size(right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **settings: Any) -> Any:  # noqa: N805
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        _spend(20 * STEP + _size([*args, *settings.values()]) + _size(owner))
        if isinstance(owner, str) and name == "replace":
            _spend_replace(owner, str(args[0]), str(args[1]))
        if isinstance(owner, str) and name == "join":
            args = (_spend_join(owner, args[0]), *args[1:])
        result = super().call(__context, __obj, *args, **settings)
        _spend(_size(result))
        return result

    def getitem(self, obj: Any, argument: Any) -> Any:
        result = super().getitem(obj, argument)
        _spend(_size(result) if isinstance(argument, slice) else 0)
        return result

    def wrap_str_format(self, value: Any) -> None:
        return None  # so that `format` meets the rule for all methods

    def is_safe_attribute(self, obj: Any, attribute: str, value: Any) -> bool:
        for kind, allowed in METHODS.items():
            if isinstance(obj, kind):
                return attribute in allowed
        return super().is_safe_attribute(obj, attribute, value)


class _Generation(Extension):
    """`{% generation %}` marks what a model wrote, for training masks; in a prompt it prints its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _spend(0)
        yield item


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **settings: Any) -> str:
    """JSON as transformers' templates get it: nothing escaped for HTML."""
    if isinstance(indent, str) or (indent or 0) > 16:
        raise ValueError(f"tojson with an indent of {indent!r}")
    allowed = {key: settings[key] for key in ("separators", "sort_keys") if key in settings}
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **allowed)


def _printed_parts(node: nodes.Node) -> Iterator[nodes.Node]:
    """The operands of an expression whose text can reach the prompt, as far as the program shows."""
    if isinstance(node, nodes.BinExpr | nodes.And | nodes.Or):
        yield from (node.left, node.right)
    elif isinstance(node, nodes.Concat):
        yield from node.nodes
    elif isinstance(node, nodes.CondExpr):
        yield from (part for part in (node.expr1, node.expr2) if part)
    elif isinstance(node, nodes.Filter) and node.node is not None:
        yield node.node
    elif isinstance(node, nodes.Getitem):
        yield node.node
    elif isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name):  # a macro's arguments
        yield from node.args
        yield from (keyword.value for keyword in node.kwargs)
    elif isinstance(node, nodes.List | nodes.Tuple):
        yield from node.items
    elif isinstance(node, nodes.Dict):
        yield from (pair.value for pair in node.items)


@dataclass
class ChatTemplate:
    """A tokenizer's template. `controls`: id of each control token by spelling; `named`: `bos_token` and the like."""

    source: str
    controls: Mapping[str, int]
    named: Mapping[str, str]
    _nonce: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if len(self.source) > MAX_SOURCE:
            raise UserError(f"The chat template has {len(self.source)} characters.", f"At most {MAX_SOURCE} are read.")
        longest_first = sorted(self.controls, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._environment = _Environment()
        self._plain = self._compile(lambda text: text)
        self._calls = CallShapes(self._text)
        self._new_marks()
        self._refuse_built_control()

    def _new_marks(self) -> None:
        self._nonce = secrets.token_hex(16)
        self._marks = re.compile(f"\ue000{self._nonce}:(\\d+)\ue001")
        self._marked = self._compile(self._mark)

    def _mark(self, text: str) -> str:
        return self._spelled.sub(lambda m: f"\ue000{self._nonce}:{self.controls[m[0]]}\ue001", text)

    def _compile(self, change: Callable[[str], str]) -> jinja2.Template:
        try:
            tree = self._environment.parse(self.source)
            for loop in tree.find_all(nodes.For):
                loop.iter = nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno)
            for data in tree.find_all(nodes.TemplateData):
                data.data = change(data.data)
            waiting: list[nodes.Node] = [part for output in tree.find_all(nodes.Output) for part in output.nodes]
            waiting += [assignment.node for assignment in tree.find_all(nodes.Assign)]
            while waiting:
                node = waiting.pop()
                if isinstance(node, nodes.Const) and isinstance(node.value, str):
                    node.value = change(node.value)
                waiting += _printed_parts(node)
            _join_by_adding(tree)
            return self._environment.from_string(tree)
        except jinja2.TemplateError as error:
            raise UserError(f"The chat template cannot be read ({_line(error)}).") from None
        except (RecursionError, MemoryError, SyntaxError, ValueError):
            raise UserError("The chat template cannot be read: it is nested too deeply.") from None

    def pieces(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None, **variables: Any
    ) -> list[Piece]:
        """The prompt for the model's next turn. UserError for what the template refuses or cannot do."""
        messages = self._calls.shaped(messages, bool(tools))
        given = json.dumps([messages, tools, variables], ensure_ascii=False, default=str)
        while self._nonce in given:
            self._new_marks()
        data = _data(messages, tools) | variables
        plain = self._render(self._plain, {**self.named, **data}, len(given))
        if lost := next((name for name in called(messages) if name not in plain), None):
            raise UserError(f"The chat template leaves out the call of {lost}.", "Give it one call at a time.")
        marked = self._render(self._marked, {k: self._mark(v) for k, v in self.named.items()} | data, len(given))
        parts = self._marks.split(marked)
        pieces: list[Piece] = [int(part) if i % 2 else part for i, part in enumerate(parts)]
        spelling = {index: token for token, index in self.controls.items()}
        if plain != "".join(spelling[p] if isinstance(p, int) else p for p in pieces):
            raise _computed()
        return [piece for piece in pieces if piece != ""]

    def _text(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> str:
        return self._render(self._plain, {**self.named, **_data(messages, tools)}, 1000)

    def _refuse_built_control(self) -> None:
        """UserError for a template that puts control tokens together out of parts (`'<|' ~ role ~ '|>'`)."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        for probe in (turns[:1], [{"role": "system", "content": "c"}, *turns, turns[0]]):
            try:
                pieces = self.pieces(probe, None)
            except UserError:
                continue  # not a conversation for this template; the user's own will say why
            if any(isinstance(piece, str) and self._spelled.search(piece) for piece in pieces):
                raise _computed()

    def _render(self, template: jinja2.Template, data: Mapping[str, Any], size: int) -> str:
        token = _BUDGET.set(_Budget(20e6 + 200 * size, time.monotonic() + 5 + size / 1e6))
        try:
            return template.render(data)
        except (_Spent, RecursionError, MemoryError):
            raise UserError("The chat template does not come to an end.", "Name a built-in form instead.") from None
        except Exception as error:  # the program is a stranger's: it can fail in every way that Python has
            raise UserError(f"The chat template gives no prompt for this ({_line(error)}).") from None
        finally:
            _BUDGET.reset(token)


def _data(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
    """What a program is given, as transformers gives it."""
    now = datetime.now()
    return {
        "messages": [dict(message) for message in messages],
        "tools": list(tools) if tools else None,
        "documents": None,
        "add_generation_prompt": True,
        "strftime_now": lambda form: now.strftime(form[:100]),
    }


def _join_by_adding(tree: nodes.Node) -> None:
    """`a ~ b` as `a|string + b|string`, so that it has a price."""
    for name in tree.fields:
        value = getattr(tree, name)
        children = value if isinstance(value, list) else [value]
        for i, child in enumerate(children):
            if not isinstance(child, nodes.Node):
                continue
            _join_by_adding(child)
            if isinstance(child, nodes.Concat):
                texts: list[nodes.Expr] = [
                    nodes.Filter(part, "string", [], [], None, None, lineno=child.lineno) for part in child.nodes
                ]
                total = texts[0]
                for text in texts[1:]:
                    total = nodes.Add(total, text, lineno=child.lineno)
                if isinstance(value, list):
                    value[i] = total
                else:
                    setattr(tree, name, total)


def _computed() -> UserError:
    return UserError(
        "The chat template computes its control tokens, so that they cannot be told from a message's text.",
        "Name a built-in form instead.",
    )


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return text if isinstance(error, jinja2.TemplateError) and text else f"{type(error).__name__}: {text}"
