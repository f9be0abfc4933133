"""Whether an answer is the gold one where that takes more than plain numbers: expressions, lists, sets, tuples,
intervals and their unions, matrices, equations and inequalities.

Both have to be of one form, part by part: 5, 6 is not 5, and neither is 5 or 6, a union, or a bound. An answer may
leave undone only what the gold one leaves undone: for 391 it is not 17 times 23.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from hadal.tasks.expressions import Node, Unreadable, read
from hadal.tasks.values import equal, rational, undone

_NAME = r"\\?[A-Za-z]+(?:_(?:\w|\{\w+\}))?(?:\s*\([^(),;]*\))?"
_RELATION = re.compile(r"\\(?:leq?|geq?|neq?|lt|gt)(?:slant)?(?![A-Za-z])|<=|>=|[=<>≤≥≠]")
_SIGNS = {"le": "<=", "leq": "<=", "≤": "<=", "ge": ">=", "geq": ">=", "≥": ">=", "lt": "<", "gt": ">",
          "ne": "!=", "neq": "!=", "≠": "!="}  # fmt: skip
_TURNED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
_MATRIX = re.compile(r"\\begin\s*\{[pbB]?(?:small)?matrix\}(.*)\\end\s*\{[pbB]?(?:small)?matrix\}", re.DOTALL)
_CHOICE = re.compile(r"\\(?:pm|mp)(?![A-Za-z])|[±∓]")
_PAIRS = {"(": ")", "[": "]", "{": "}", "\\{": "\\}"}


def compare(gold: str, given: str) -> bool | None:
    """Whether a tidied answer means what the gold one does; None where the gold one is of no form known here."""
    try:
        same = _form(gold)
    except (Unreadable, RecursionError):
        return None
    try:
        return same(given)
    except (Unreadable, RecursionError):
        return False


def readable(text: str) -> bool:
    """Whether a text is of a form known here."""
    try:
        _form(text)
    except (Unreadable, RecursionError):
        return False
    return True


Same = Callable[[str], bool]
"""Whether a text means the same as the one that this was made from. Unreadable where it is of another form."""


def _form(text: str) -> Same:
    """Unreadable where the text is of no known form."""
    text = _bare(text)
    if matrix := _MATRIX.fullmatch(text):
        return _same_rows(matrix[1])
    if len(pieces := _pieces(text, r"\\cup(?![A-Za-z])|∪")) > 1:
        return _unordered(pieces, lambda other: _pieces(_bare(other), r"\\cup(?![A-Za-z])|∪"))
    if opened := _bracketed(text):
        kind, items = opened
        if kind == "\\{\\}":
            return _unordered(_listed(text), _listed)
        if len(items) > 1:
            forms = [_form(item) for item in items]

            def same_sequence(other: str) -> bool:
                found = _bracketed(_bare(other)) or _interval(other)
                if found is None or found[0] != kind or len(found[1]) != len(forms):
                    return False
                return all(same(item) for same, item in zip(forms, found[1], strict=True))

            return same_sequence
    if len(pieces := _listed(text)) > 1:
        return _unordered(pieces, _listed)
    if _RELATION.search(text):
        return _relation(text)
    return _expression(read(text))


def _expression(gold: Node) -> Same:
    left, plain = undone(gold), rational(gold) is not None
    is_decimal = gold.op == "number" and "." in gold.name

    def same(other: str) -> bool:
        exact, *rounded = other.split("≈")
        given = read(_value(rounded[-1] if rounded and (is_decimal or not exact.strip()) else exact))
        return undone(given, strict=plain and not left) <= left and equal(gold, given)

    return same


def _unordered(pieces: Sequence[str], split: Callable[[str], list[str]]) -> Same:
    """The same pieces in any order, each once."""
    forms = [_form(piece) for piece in pieces]

    def same(other: str) -> bool:
        left = split(other)
        if len(left) != len(forms):
            return False
        for form in forms:
            found = next((i for i, piece in enumerate(left) if _fits(form, piece)), None)
            if found is None:
                return False
            left.pop(found)
        return True

    return same


def _fits(form: Same, piece: str) -> bool:
    try:
        return form(piece)
    except Unreadable:
        return False


def _same_rows(body: str) -> Same:
    def rows(text: str) -> list[list[str]]:
        lines = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", text) if row.strip()]
        return [row.split("&") for row in lines]

    forms = [[_form(cell) for cell in row] for row in rows(body)]

    def same(other: str) -> bool:
        matrix = _MATRIX.fullmatch(_bare(other))
        cells = rows(matrix[1]) if matrix else []
        return [len(row) for row in cells] == [len(row) for row in forms] and all(
            form(cell) for row, line in zip(forms, cells, strict=True) for form, cell in zip(row, line, strict=True)
        )

    return same


# ------------------------------------------------------------------------------------- equations and inequalities


def _relation(text: str) -> Same:
    sides, signs = _sides(text)
    if set(signs) == {"="} and re.fullmatch(_NAME, sides[0].strip()):  # x = 5, f(x) = 2x + 1
        name, value = sides[0].strip(), _form(sides[-1])

        def same_value(other: str) -> bool:
            others, found = _sides(other)
            if not found:
                return value(other)
            if set(found) == {"="} and re.fullmatch(_NAME, others[0].strip()):
                return _letters(others[0]) == _letters(name) and value(others[-1])
            return _same_equation(sides, others, found)

        return same_value
    for side in sides:
        read(side)
    interval = _interval(text)

    def same(other: str) -> bool:
        if interval and (found := _bracketed(_bare(other))):
            ends = [_expression(read(end)) for end in interval[1]]
            return found[0] == interval[0] and len(found[1]) == 2 and ends[0](found[1][0]) and ends[1](found[1][1])
        others, found_signs = _sides(other)
        if signs == ["="]:
            return _same_equation(sides, others, found_signs)
        turned = [_TURNED[sign] for sign in reversed(found_signs)]
        for parts, order in ((others, found_signs), (others[::-1], turned)):
            if order == signs and all(equal(read(a), read(b)) for a, b in zip(sides, parts, strict=True)):
                return True
        return False

    return same


def _same_equation(sides: Sequence[str], others: Sequence[str], signs: Sequence[str]) -> bool:
    """Whether two equations differ by a factor alone: the differences of their sides have a constant quotient."""
    if list(signs) != ["="] or len(sides) != 2:
        return False
    one, other = (Node("add", (read(left), Node("minus", (read(right),)))) for left, right in (sides, others))
    names = sorted(one.variables)
    if not names or one.variables != other.variables:
        return False
    here, there = _at(one, names), _at(other, names)
    if equal(here, Node("number", name="0")):
        return False
    return equal(Node("times", (one, there)), Node("times", (other, here)))


def _at(node: Node, names: Sequence[str]) -> Node:
    """An expression with a number for each variable."""
    if node.op == "variable":
        return Node("number", name=str(3 + 2 * names.index(node.name)))
    return Node(node.op, tuple(_at(arg, names) for arg in node.args), node.name)


def _sides(text: str) -> tuple[list[str], list[str]]:
    text = _bare(text)
    signs = [found.lstrip("\\").removesuffix("slant") for found in _RELATION.findall(text)]
    return _RELATION.split(text), [_SIGNS.get(sign, sign) for sign in signs]


def _interval(text: str) -> tuple[str, list[str]] | None:
    """The interval that an inequality for a single variable stands for, as `_bracketed` has it."""
    sides, signs = _sides(text)
    if signs and all(sign in (">", ">=") for sign in signs):
        sides, signs = sides[::-1], [_TURNED[sign] for sign in reversed(signs)]
    if not signs or not all(sign in ("<", "<=") for sign in signs) or len(signs) > 2:
        return None
    at = next((i for i, side in enumerate(sides) if re.fullmatch(r"\s*[A-Za-z]\s*", side)), None)
    if at is None or (len(signs) == 2 and at != 1):
        return None
    low = (sides[0], "[" if signs[0] == "<=" else "(") if at else ("-\\infty", "(")
    high = (sides[-1], "]" if signs[-1] == "<=" else ")") if at < len(sides) - 1 else ("\\infty", ")")
    return low[1] + high[1], [low[0], high[0]]


# ------------------------------------------------------------------------------------- texts and their parts


def _bare(text: str) -> str:
    """A text without a full stop at its end, braces around all of it, and `x \\in` before it."""
    text = re.sub(r"^\s*[A-Za-z]\s*(?:\\in(?![A-Za-z])|∈)", "", text.strip().rstrip(".")).strip()
    while text.startswith("{") and _closing(text, 0) == len(text):
        text = text[1:-1].strip()
    return text


def _value(text: str) -> str:
    """What is behind the last equals sign of `x = 5`; of an equation the whole, which is no expression."""
    text = _bare(text)
    *lefts, value = text.split("=")
    return value if all(re.fullmatch(_NAME, left.strip()) or _closed(left) for left in lefts) else text


def _closed(text: str) -> bool:
    try:
        return not read(text).variables
    except Unreadable:
        return False


def _letters(text: str) -> str:
    return re.sub(r"[\s{}\\]", "", text)


def _listed(text: str) -> list[str]:
    """The items of a list or set, each choice of a sign as two of them."""
    text = _bare(text)
    if (opened := _bracketed(text)) and opened[0] == "\\{\\}":
        text = ",".join(opened[1])
    items = _pieces(text, r",|;|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])")
    return [item for piece in items if piece.strip() for item in _signed(piece)]


def _signed(text: str) -> list[str]:
    if not _CHOICE.search(text):
        return [text]
    plus = {"\\pm": "+", "±": "+", "\\mp": "-", "∓": "-"}
    return [
        _CHOICE.sub(lambda sign: plus[sign[0]], text),
        _CHOICE.sub(lambda sign: "-" if plus[sign[0]] == "+" else "+", text),
    ]


def _bracketed(text: str) -> tuple[str, list[str]] | None:
    """The brackets around all of a text, such as (], and the items in them; None where there are none."""
    opening = next((mark for mark in ("\\{", "(", "[") if text.startswith(mark)), None)
    closing = next((mark for mark in ("\\}", ")", "]") if text.endswith(mark)), None)
    if opening is None or closing is None or (opening == "\\{") != (closing == "\\}") or _closing(text, 0) != len(text):
        return None
    return opening + closing, _pieces(text[len(opening) : -len(closing)], r",|;")


def _closing(text: str, start: int) -> int:
    """The end of the bracket that opens at `start`; 0 where it has none. Intervals close with either bracket."""
    depth = 0
    for mark in re.finditer(r"\\[{}]|\\.|[()\[\]{}]", text[start:], re.DOTALL):
        if mark[0] in _PAIRS:
            depth += 1
        elif mark[0] in _PAIRS.values():
            depth -= 1
            if depth == 0:
                return start + mark.end()
    return 0


def _pieces(text: str, separator: str) -> list[str]:
    """A text cut where a separator stands outside of all brackets."""
    found, begin, depth = list[str](), 0, 0
    for mark in re.finditer(rf"(?P<cut>{separator})|\\[{{}}]|\\.|[()\[\]{{}}]", text, re.DOTALL):
        if mark["cut"]:
            if depth == 0:
                found.append(text[begin : mark.start()])
                begin = mark.end()
        else:
            depth += (mark[0] in _PAIRS) - (mark[0] in _PAIRS.values())
    return [*found, text[begin:]]
