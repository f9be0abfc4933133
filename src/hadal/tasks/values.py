"""The values of expressions, compared exactly, and what an expression leaves undone.

What is rational is computed as a fraction. The rest is computed to many digits, relative to its size; formulas with
variables at several rational points. So 1/2^99 is not 1/2^98, and no two values are equal for being small. mpmath's
precision is the process's own: one thread at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from mpmath import mp

from hadal.tasks.expressions import Node, Unreadable

DIGITS = 40  # beyond what the largest whole number in sight has
MOST_BITS = 1 << 16  # of a fraction that is worked out
POINTS, FEWEST = 16, 4  # at which formulas are compared; at fewer both have real values
SIGNIFICANT = 6  # digits of a decimal that stands for an irrational number


class _Evaluation:
    """Values of nodes, a fraction where that is exact; `bits` of the largest fraction on the way."""

    def __init__(self, at: Mapping[str, Fraction]) -> None:
        self.at, self.bits = at, 0

    def value(self, node: Node) -> Any:
        found = getattr(self, f"_{node.op}", self._unknown)(node, *(self.value(arg) for arg in node.args))
        if isinstance(found, Fraction):
            self.bits = max(self.bits, found.numerator.bit_length(), found.denominator.bit_length())
            if self.bits > MOST_BITS:
                raise Unreadable("too large")
        return found

    def _unknown(self, node: Node, *_: Any) -> Any:
        raise Unreadable(f"{node.op} has no value")

    def _number(self, node: Node) -> Fraction:
        return Fraction(node.name)

    def _based(self, node: Node, base: Any) -> Fraction:
        return Fraction(int(node.name, int(base)))

    def _variable(self, node: Node) -> Fraction:
        return self.at[node.name]

    def _constant(self, node: Node) -> Any:
        return {"pi": +mp.pi, "e": +mp.e, "i": mp.mpc(0, 1), "infty": mp.inf}[node.name]

    def _group(self, node: Node, x: Any) -> Any:
        return x

    def _minus(self, node: Node, x: Any) -> Any:
        return -x

    def _add(self, node: Node, *terms: Any) -> Any:
        total = terms[0]
        for term in terms[1:]:
            total = total + term if _both(total, term) else _real(total) + _real(term)
        return total

    _mixed = _add

    def _times(self, node: Node, *factors: Any) -> Any:
        found = factors[0]
        for factor in factors[1:]:
            found = found * factor if _both(found, factor) else _real(found) * _real(factor)
        return found

    def _over(self, node: Node, x: Any, y: Any) -> Any:
        return x / y if _both(x, y) else _real(x) / _real(y)

    _divided = _over

    def _degrees(self, node: Node, x: Any) -> Any:
        return _real(x) * mp.pi / 180

    def _power(self, node: Node, x: Any, y: Any) -> Any:
        if _both(x, y) and y.denominator == 1:
            size = max(x.numerator.bit_length(), x.denominator.bit_length())
            if abs(y) * size > MOST_BITS:
                raise Unreadable("too large")
            return x ** int(y)
        x, y = _real(x), _real(y)
        if x == 0 or abs(y) * (1 + abs(mp.log(abs(x), 2))) > MOST_BITS:
            raise Unreadable("too large")
        return mp.power(x, y)

    def _root(self, node: Node, x: Any, n: Any) -> Any:
        if _both(x, n) and n == 2 and x >= 0:
            up, down = math.isqrt(x.numerator), math.isqrt(x.denominator)
            if up * up == x.numerator and down * down == x.denominator:
                return Fraction(up, down)
        if n == 3 and _both(x, n) and x < 0:
            return -mp.cbrt(_real(-x))
        return mp.sqrt(_real(x)) if n == 2 else mp.power(_real(x), 1 / _real(n))

    def _abs(self, node: Node, x: Any) -> Any:
        return abs(x)

    def _floor(self, node: Node, x: Any) -> Any:
        return Fraction(int(mp.floor(_real(x))))

    def _ceil(self, node: Node, x: Any) -> Any:
        return Fraction(int(mp.ceil(_real(x))))

    def _factorial(self, node: Node, n: Any) -> Fraction:
        if not isinstance(n, Fraction) or n.denominator != 1 or not 0 <= n <= 2000:
            raise Unreadable("no factorial")
        return Fraction(math.factorial(int(n)))

    def _binomial(self, node: Node, n: Any, k: Any) -> Fraction:
        if not _both(n, k) or n.denominator != 1 or k.denominator != 1 or not 0 <= k <= n <= 2000:
            raise Unreadable("no binomial")
        return Fraction(math.comb(int(n), int(k)))

    def _call(self, node: Node, x: Any, base: Any = None) -> Any:
        x = _real(x)
        if node.name in ("ln", "log", "lg"):
            if x == 0:
                raise Unreadable("no logarithm")
            return mp.log(x) if node.name == "ln" else mp.log(x) / mp.log(_real(base or Fraction(10)))
        if abs(x) > MOST_BITS:
            raise Unreadable("too large")
        names = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}
        return getattr(mp, names.get(node.name, node.name))(x)


def _both(x: Any, y: Any) -> bool:
    return isinstance(x, Fraction) and isinstance(y, Fraction)


def _real(x: Any) -> Any:
    return mp.mpf(x.numerator) / x.denominator if isinstance(x, Fraction) else x


def rational(node: Node) -> Fraction | None:
    """The value of a closed expression whose steps are all rational."""
    try:
        found = _Evaluation({}).value(node)
    except (ArithmeticError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, Fraction) else None


def equal(gold: Node, given: Node) -> bool:
    """Whether two expressions have the same value: exactly, and where that is no fraction to `DIGITS` digits.

    A decimal of `SIGNIFICANT` digits or more stands for an irrational number that rounds to it.
    """
    if "based" in (gold.op, given.op):  # a base that is left out is understood, and none is converted
        return gold.op == "based" and given.name == gold.name and given in (gold, Node("number", name=gold.name))
    names = sorted(gold.variables)
    if gold.variables != given.variables:
        return False
    agreed = 0
    for point in range(POINTS if names else 1):
        at = {name: Fraction(7919 * (point + 2) * (n + 3) % 1009 - 431, 97 + 2 * n) for n, name in enumerate(names)}
        try:
            if not _agree(gold, given, at):
                return False
        except (ArithmeticError, ValueError, TypeError):
            continue
        agreed += 1
    return agreed >= (FEWEST if names else 1)


class _NotReal(ValueError):
    """A formula of real variables that has no real value at a point, such as ln x + ln y where both are below 0."""


def _agree(gold: Node, given: Node, at: Mapping[str, Fraction]) -> bool:
    digits = DIGITS
    for _ in range(2):
        with mp.workdps(digits + 10):
            evaluation = _Evaluation(at)
            x, y = evaluation.value(gold), evaluation.value(given)
            if _both(x, y) or mp.isinf(_real(x)) or mp.isinf(_real(y)):
                return bool(x == y)
            if at and not (_is_complex(gold) or _is_complex(given)) and (mp.im(_real(x)) or mp.im(_real(y))):
                raise _NotReal
            more = DIGITS + int(0.31 * evaluation.bits)
            if more <= digits:
                break
            digits = more
    with mp.workdps(digits + 10):
        apart, size = abs(_real(x) - _real(y)), max(abs(_real(x)), abs(_real(y)))
        for decimal, other in ((gold, y), (given, x)):
            if not isinstance(other, Fraction) and (unit := _last_place(decimal)):
                return bool(apart <= _real(unit) / 2)
        return bool(apart <= size * mp.mpf(10) ** -(digits - 10))


def _is_complex(node: Node) -> bool:
    return node == Node("constant", name="i") or any(map(_is_complex, node.args))


def _last_place(node: Node) -> Fraction | None:
    """The unit of a decimal's last place, if it has digits enough to stand for a number that it rounds."""
    node = node.args[0] if node.op == "minus" else node
    whole, point, decimals = node.name.partition(".") if node.op == "number" else ("", "", "")
    return Fraction(1, 10 ** len(decimals)) if point and len((whole + decimals).lstrip("0")) >= SIGNIFICANT else None


# ------------------------------------------------------------------------------------- what is left undone


def undone(node: Node, strict: bool = False) -> set[str]:
    """The operations of an expression that are left to whoever reads it: sums, products and quotients of numbers that
    could be carried out, factorials, functions. Fractions, powers, roots and 3 times 10^8 are how numbers are written.

    strict: the whole is rational, so that also a product of two roots could be carried out.
    """
    found = set[str]().union(*(undone(arg, strict) for arg in node.args))
    if node.op in ("add", "times", "divided"):
        known = sum(rational(arg) is not None for arg in node.args)
        if (known > 1 or (strict and not node.variables)) and not _is_scientific(node):
            found.add(node.op)
    elif node.op == "over" and any(_inside(arg).op == "over" for arg in node.args):
        found |= {"divided"} if rational(node) is not None else set()
    elif node.op in ("factorial", "binomial", "call", "abs", "floor", "ceil", "based") and not node.variables:
        found.add("log" if node.name in ("ln", "log", "lg") else node.name if node.op == "call" else node.op)
    return found


def _inside(node: Node) -> Node:
    return _inside(node.args[0]) if node.op in ("minus", "group") else node


def _is_scientific(node: Node) -> bool:
    if node.op != "times" or len(node.args) != 2:
        return False
    number, power = map(_inside, node.args)
    ten = power.op == "power" and power.args[0] == Node("number", name="10") and _inside(power.args[1]).op == "number"
    return number.op == "number" and ten
