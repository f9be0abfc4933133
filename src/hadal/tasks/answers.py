"""Maths answers: which part of a text is the answer, and whether it means the same as the gold one.

Plain numbers (fractions, decimals, percentages, money, units) are compared exactly and here. What this does not
decide (roots, sets, intervals, tuples, formulas) is math-verify's, which may hang: so `check` belongs in a process
that can be killed (`hadal.tasks.symbolic`), and `decide` may run anywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from hadal.errors import UserError

LONGEST = 500  # characters of an answer; what is longer is not one
_STATEMENT = 2000  # characters of prose that are searched for an answer


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and why not. graded: its score from 0 to 1, where that says more than `right`;
    broke: what judges it came to no verdict, so that it counts as wrong."""

    right: bool
    note: str = ""
    graded: float | None = None
    broke: bool = False

    @property
    def score(self) -> float:
        """From 0 to 1."""
        return float(self.right) if self.graded is None else self.graded


@dataclass(frozen=True)
class Final:
    """The part of a text that is its answer. boxed: it was marked as such; told: a cue as 'answer:' went before."""

    text: str
    boxed: bool
    told: bool


@dataclass(frozen=True)
class Quantity:
    """A plain number as it is written: 5% is (5, percent). unit: a well-known one by its short name, or empty."""

    value: Fraction
    percent: bool = False
    unit: str = ""


# ------------------------------------------------------------------------------------- where the answer is

_CUE = re.compile(r"####|\banswer(?:\*\*)?\s*(?:is|are|[:=：])|答案(?:是|为)?\s*[:：]?", re.IGNORECASE)
_TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*)</answer>", re.DOTALL)
_BOX = re.compile(r"\\f?box(?:ed)?(?![A-Za-z])\s*")
_SENTENCE = re.compile(r"(?<=[.!?。])\s+")


def final_answer(text: str) -> Final | None:
    """The last `\\boxed{}`; else what follows the last 'answer is', 'Answer:' or '####'; else the last line (with a
    digit, if any has one).

    R1-Zero's `<answer>` tags are looked into. None where there is nothing, and where the last box is empty or open.
    """
    tagged = _TAGGED.findall(text)
    text = tagged[-1] if tagged else text
    boxes = list(_BOX.finditer(text))
    if boxes:
        inside = _in_braces(text, boxes[-1].end())
        return Final(inside, True, False) if inside is not None and inside.strip() else None
    cues = list(_CUE.finditer(text))
    if cues:
        told = text[cues[-1].end() :].strip().strip("*").strip().split("\n", 1)[0]
        if told.strip():
            return Final(told[:_STATEMENT], False, True)
    lines = [line for line in text.split("\n") if line.strip()]
    last = next((line for line in reversed(lines) if re.search(r"\d", line)), lines[-1] if lines else "")
    return Final(last.strip()[-_STATEMENT:], False, False) if last else None


def _in_braces(text: str, start: int) -> str | None:
    """What stands in the braces that open at `start`, or there without braces (`\\boxed 3`)."""
    if not text.startswith("{", start):
        bare = re.compile(r"[^\s$]+").match(text, start)
        return bare[0].rstrip(".") if bare else None
    depth, at = 0, start
    while at < len(text):
        if text[at] == "\\":
            at += 1  # an escaped brace opens nothing
        else:
            depth += (text[at] == "{") - (text[at] == "}")
            if depth == 0:
                return text[start + 1 : at]
        at += 1
    return None


# ------------------------------------------------------------------------------------- plain numbers

_SPELLINGS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}", r" \1 "),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|°|\\degree\b", " degrees "),
        (r"\{,\}", ","),
        (r"\\!|\\(?:left|right|displaystyle)(?![A-Za-z])", ""),
        (r"\\[,;: ]|\\q?quad(?![A-Za-z])|[~\u00a0\u202f\u2009]", " "),
        (r"\\([$%&#])", r"\1"),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\approx(?![A-Za-z])", "≈"),
        (r"[−﹣－]", "-"),
        (r"\*\*|`", ""),
        (r"\s+", " "),
    )
]
_WRAPPED = re.compile(r"\$\$(.*)\$\$|\$([^$]+)\$|\\\((.*)\\\)|\\\[(.*)\\\]", re.DOTALL)


def tidy(text: str) -> str:
    """Text without LaTeX's spacing, wrapping and fonts."""
    text = text.strip()
    wrapped = _WRAPPED.fullmatch(text.rstrip("."))
    text = next(group for group in wrapped.groups() if group is not None) if wrapped else text
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    return text.strip()


_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?![,\d])|\d{1,3}(?:[ ]\d{3})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.\d*)?|\.\d+)"
_NUMBER = re.compile(
    rf"""(?P<sign>[-+]|\bminus\s|\bnegative\s)?\s*(?P<money>[$€£¥₹])?\s*(?P<inner>-)?\s*
    (?:
        (?:(?P<whole>\d+)\s*)?\\frac\s*
            (?:\{{\s*(?P<up>-?{_DECIMAL})\s*\}}|(?P<up1>\d))\s*(?:\{{\s*(?P<down>-?{_DECIMAL})\s*\}}|(?P<down1>\d))
      | (?:(?P<whole2>\d+)[ ]+)?(?P<up2>{_DECIMAL})\s*/\s*(?P<down2>{_DECIMAL})(?!\s*/)
      | (?P<decimal>{_DECIMAL})
        (?:\s*(?:\\times|\\cdot|[×*])\s*10\s*\^\s*\{{?\s*(?P<power>[-+]?\d{{1,3}})\s*\}}?|[eE](?P<power2>[-+]?\d{{1,3}}))?
    )
    (?:\s*(?P<scale>hundred|thousand|million|billion|trillion)\b)?
    (?:\s*(?P<percent>%|percent\b|per\ cent\b))?""",
    re.VERBOSE,
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_UNITS = {
    name: unit
    for unit, names in {
        "$": "$ dollar dollars usd", "€": "€ euro euros eur", "£": "£ gbp", "¢": "¢ cent cents",
        "mm": "mm millimeter millimeters millimetre millimetres",
        "cm": "cm centimeter centimeters centimetre centimetres",
        "m": "m meter meters metre metres", "km": "km kilometer kilometers kilometre kilometres",
        "in": "in inch inches", "ft": "ft foot feet", "yd": "yd yard yards", "mi": "mi mile miles",
        "mg": "mg milligram milligrams", "g": "g gram grams", "kg": "kg kilogram kilograms",
        "ml": "ml milliliter milliliters millilitre millilitres", "l": "l liter liters litre litres",
        "s": "s sec second seconds", "min": "min minute minutes", "h": "h hr hrs hour hours", "day": "day days",
        "week": "week weeks", "month": "month months", "year": "year years", "deg": "degree degrees deg",
    }.items()
    for name in names.split()
}  # fmt: skip
# Words that make another number of the one beside them, or leave open which one is meant.
_TURNING = set(
    """not no or and to than least most between from under over below above up except plus times mod pi tau phi theta
    alpha beta sqrt sin cos tan log ln exp inf infinity hundred thousand million billion trillion squared cubed half
    root factorial base divided multiplied twice thrice double triple isn't
    halves third thirds fifth fifths tenth tenths hundredth hundredths thousandth thousandths minus negative""".split()
)
_BEFORE = re.compile(r"(?:[A-Za-z']+[ ]+)*(?:[A-Za-z']+[ ]*[:：]?[ ]*)?[≈~]?\s*\(?\s*")
_AFTER = re.compile(
    r"(?P<gap>\s*)(?P<words>[¢A-Za-z][A-Za-z'/. -]*)?(?P<power>\s*(?:\^\s*\{?\s*[23]\s*\}?|[²³]))?\s*\)?\.?"
)
# What may stand before '=' in an answer: a name, f(2), or arithmetic. x^2 - 7 = 0 is an equation, and not 0.
_LEFT = re.compile(
    r"\s*(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?\s*(?:\([^(),;]*\))?|(?:[-+*/()\d.,\s^{}×÷]|\\(?:times|cdot|div|frac))+)\s*"
)


def quantity(text: str) -> Quantity | None:
    """The number that a text as a whole is, with words and a unit around it; None for anything else.

    `x = 5` is 5. Arithmetic is not carried out: 9*2 is not 18. Several numbers, ranges and bounds are None.
    """
    if len(text) > LONGEST:
        return None
    text = tidy(text)
    *lefts, text = text.split("=")
    if not all(_LEFT.fullmatch(left) for left in lefts):
        return None
    text = text.strip()
    match = _NUMBER.search(text)
    if match is None or not _BEFORE.fullmatch(text[: match.start()]):
        return None
    after = _AFTER.fullmatch(text[match.end() :])
    if after is None:
        return None
    before, words = text[: match.start()], (after["words"] or "").strip(" .").lower().split()
    if any(not _is_word(word) for word in re.findall(r"[A-Za-z']+", before)):
        return None
    if after["power"] and not words:
        return None
    if words and not after["gap"] and not match["percent"] and (words[0] not in _UNITS or len(words[0]) == 1):
        return None  # 2x, and 5m, are products; 5cm is a length
    if any(not _is_word(word) and word not in _UNITS for word in words):
        return None
    return _quantity(match, words, bool(after["power"]))


def _is_word(word: str) -> bool:
    return word.lower() not in _TURNING and (len(word) > 1 or word in ("a", "I"))


def _quantity(match: re.Match[str], words: list[str], powered: bool = False) -> Quantity | None:
    """The number of a match, and its unit from the words behind it."""

    def number(*names: str) -> Fraction | None:
        found = next((match[name] for name in names if match[name]), None)
        return None if found is None else Fraction(re.sub("[, ]", "", found).rstrip("."))

    down = number("down", "down1", "down2")
    if down is not None:
        up, whole = number("up", "up1", "up2"), number("whole", "whole2") or Fraction(0)
        if down == 0 or up is None or (whole and not 0 < up / down < 1):
            return None
        value = whole + up / down
    else:
        decimal = number("decimal")
        assert decimal is not None
        value = decimal * Fraction(10) ** int(match["power"] or match["power2"] or 0)
    value *= 10 ** _SCALES.get(match["scale"] or "", 0)
    if bool(match["sign"] and match["sign"] != "+") != bool(match["inner"]):
        value = -value
    square = {"square": "2", "sq": "2", "cubic": "3"}.get(words[0], "") if words else ""
    words = words[1:] if square else words
    unit = _UNITS.get(words[0], "") if len(words) == 1 else ""
    unit = f"{unit}^" if unit and (square or powered) else unit
    return Quantity(value, bool(match["percent"]), unit or _UNITS.get(match["money"] or "", ""))


def spoken(final: Final) -> Quantity | None:
    """The number that a sentence ends up with: the first behind a cue or the last '=', else the last of all.

    None where it is one of several on offer (3 or 4), an end of a range, a bound, or denied.
    """
    whole = quantity(final.text)
    if whole is not None:
        return whole
    sentences = _SENTENCE.split(final.text.strip())
    with_digits = [sentence for sentence in sentences if re.search(r"\d", sentence)] or sentences
    text = tidy(sentences[0] if final.told else with_digits[-1])
    _, equals, right = text.rpartition("=")
    text = right if equals else text
    found = list(_NUMBER.finditer(text))
    if not found:
        return None
    at = 0 if final.told or equals else len(found) - 1
    before = text[found[at - 1].end() if at else 0 : found[at].start()]
    neighbours = [before] if at else []
    if at + 1 < len(found):
        neighbours.append(text[found[at].end() : found[at + 1].start()])
    if any(re.fullmatch(r"\s*(?:,?\s*(?:or|to|and)|[-–—,:^*×])\s*", between) for between in neighbours):
        return None
    if at and found[at]["sign"] in ("-", "+") and not before.strip():
        return None  # 10-12: a range or a difference, and not -12
    if re.search(r"(?:[<>≤≥≠]|\\(?:leq?|geq?|neq?))\s*=?\s*$", before):
        return None  # a bound
    close = {word.lower() for word in re.findall(r"[A-Za-z']+", before)[-4:]}
    if close & {"not", "no", "than", "least", "most", "between", "under", "over", "isn't", "except"}:
        return None
    glued = re.match(r"[A-Za-z]+|[\\^(]", text[found[at].end() :])
    if glued and (len(glued[0]) < 2 or glued[0].lower() not in _UNITS):
        return None  # 2x
    return _quantity(found[at], [])


# ------------------------------------------------------------------------------------- what is the same


def decide(gold: str, answer: str, percent: bool = False) -> Verdict | None:
    """Whether a text's answer is the gold one, where plain numbers and equal wording decide it; None where not.

    gold: the answer alone; answer: all that stands behind the thought; percent: the question asks for a percentage,
    so that a bare number counts as one. Otherwise a percent sign is a hundredth: 5% is 0.05 and not 5.
    """
    final = final_answer(answer)
    if final is None:
        return Verdict(False, "no answer")
    given, wanted = _plain(final.text), _plain(gold)
    if given == wanted or _plain(answer) == wanted:
        return Verdict(True)
    right = quantity(gold)
    if right is not None:
        number = quantity(final.text) if final.boxed else spoken(final)
        if number is not None:
            return Verdict(True) if same(right, number, percent) else Verdict(False, "another number")
        return None if final.boxed else Verdict(False, "no single number")
    if re.fullmatch(r"[A-Za-z]|(?=.*[A-Za-z]{3})[A-Za-z][A-Za-z,' -]*", wanted):  # a name, a word, a choice
        if given.casefold() == wanted.casefold() and len(wanted) > 1:
            return Verdict(True)
        return Verdict(False, "another word") if re.fullmatch("[A-Za-z,' -]+", given) else None
    return None


def _plain(text: str) -> str:
    """Text for comparing as text: `(C)` is C, spaces beside signs do not count."""
    text = tidy(text).rstrip(". ")
    text = re.sub(r"\s*([^\w\s])\s*", r"\1", text)
    choice = re.fullmatch(r"\(([A-Za-z])\)", text)
    return choice[1] if choice else text


def canonical(answer: str) -> str:
    """A text's answer as a number, or tidied; empty where it has none. For telling wrong answers apart."""
    final = final_answer(answer)
    if final is None:
        return ""
    number = quantity(final.text) if final.boxed else spoken(final)
    if number is None:
        return _plain(final.text).casefold()
    return f"{number.value / 100 if number.percent else number.value} {number.unit}".strip()


def same(gold: Quantity, given: Quantity, percent: bool = False) -> bool:
    """Whether two quantities are equal, exactly. Well-known units must not differ; a missing one is understood."""
    if gold.unit and given.unit and gold.unit != given.unit:
        return False
    target = gold.value / 100 if gold.percent or percent else gold.value
    if given.percent or percent:
        return given.value / 100 == target
    # A gold answer with a percent sign: the bare number may have been meant either way.
    return given.value == target or (gold.percent and given.value / 100 == target)


def check(gold: str, answer: str, percent: bool = False) -> Verdict:
    """`decide`, and math-verify where that does not. It can hang and take any amount of memory.

    UserError where math-verify is not installed.
    """
    decided = decide(gold, answer, percent)
    if decided is not None:
        return decided
    final = final_answer(answer)
    assert final is not None  # decide has said no
    if len(final.text) > LONGEST or len(gold) > LONGEST:
        return Verdict(False, "too long for an answer")
    try:
        from math_verify import parse, verify
    except ImportError:
        raise UserError(
            "Symbolic answers are compared by math-verify.", "Install it: pip install 'hadal[maths]'."
        ) from None
    wanted, given = (parse(f"${tidy(text)}$", parsing_timeout=None) for text in (gold, final.text))
    if not given:
        return Verdict(False, "not to be read as maths")
    equal = verify(wanted, given, timeout_seconds=None)
    return Verdict(True) if equal else Verdict(False, "not equal by math-verify")
