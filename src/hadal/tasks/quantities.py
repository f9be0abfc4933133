"""Plain numbers as people write them: fractions, decimals, percentages, money and units, compared exactly."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

LONGEST = 500  # characters of an answer; what is longer is not one
SENTENCE = re.compile(r"(?<=[.!?。])\s+")


@dataclass(frozen=True)
class Quantity:
    """A plain number as it is written: 5% is (5, percent). unit: a well-known one by its short name, or empty."""

    value: Fraction
    percent: bool = False
    unit: str = ""


_VULGAR = "½12 ⅓13 ⅔23 ¼14 ¾34 ⅕15 ⅖25 ⅗35 ⅘45 ⅙16 ⅚56 ⅛18 ⅜38 ⅝58 ⅞78".split()
_SPELLINGS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}", r" \1 "),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|°|\\degree\b", " degrees "),
        (r"\{,\}|,\s*\\!\s*", ","),
        *((each[0], rf"\\frac{{{each[1]}}}{{{each[2]}}}") for each in _VULGAR),
        (r"\\!|\\(?:left|right|displaystyle)(?![A-Za-z])", ""),
        (r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|[~\u00a0\u202f\u2009]", " "),
        (r"(?<!\\)\\([$%&#])", r"\1"),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\approx(?![A-Za-z])", "≈"),
        (r"[−﹣－]", "-"),
        (r"(?<![\d)}])\*\*|\*\*(?![\d({-])|`", ""),
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


_BESIDE = re.compile(r"\s*(?:,?\s*(?:or|to|and)|[-–—,;:^*×·÷/±∪∩]|\\[A-Za-z]+)\s*")
_HELD = re.compile(
    r"(?:[<>≤≥≠±∓√^_*×·÷/∪∩|\\]|\\[A-Za-z]+\s*[\[{(]*|\^\s*\{|[A-Za-z]\()[\s$=]*$|\bplus or minus\s*$", re.IGNORECASE
)
_HOLDS = re.compile(r"\s*(?:[\^_*×·÷±∓∪∩√π!|]|/\s*\w|\\(?:times|cdot|div|pm|mp|cup|cap|pi|sqrt|frac|binom)\b)")
"""What makes a number beside it a part of something else."""


def spoken(sentence: str, told: bool) -> Quantity | None:
    """The number that a sentence ends up with: the first behind a cue or the last '=', else the last of all.

    None where it is one of several on offer (3 or 4), an end of a range, a bound, or denied.
    """
    whole = quantity(sentence)
    if whole is not None:
        return whole
    sentences = SENTENCE.split(sentence.strip())
    with_digits = [sentence for sentence in sentences if re.search(r"\d", sentence)] or sentences
    text = tidy(sentences[0] if told else with_digits[-1])
    left, equals, right = text.rpartition("=")
    text = right if equals else text
    found = list(_NUMBER.finditer(text))
    if not found:
        return None
    at = 0 if told or equals else len(found) - 1
    before = text[found[at - 1].end() if at else 0 : found[at].start()]
    behind = text[found[at].end() : found[at + 1].start() if at + 1 < len(found) else len(text)]
    neighbours = ([before] if at else []) + ([behind] if at + 1 < len(found) else [])
    if any(_BESIDE.fullmatch(between) for between in neighbours):
        return None
    if re.search(r"\bor\b", before if at else "") or re.search(r"\bor\b", behind):
        return None  # 3, or maybe 4; 5 or more
    if equals and re.search(r"\d[^.\d]*\bor\b", left):
        return None  # x = 3 or x = 4
    signs = [found[i]["sign"] for i in (at, at + 1) if 0 < i < len(found)]
    if any(sign in ("-", "+") and not between.strip() for sign, between in zip(signs, neighbours, strict=True)):
        return None  # 10-12: a range or a difference, and not -12
    if _HELD.search(before) or _HOLDS.match(behind):
        return None  # a bound, or a part of a formula: √5, ±5, 5 times 7, 5!
    close = {word.lower() for word in re.findall(r"[A-Za-z']+", before)[-4:]}
    if close & {"not", "no", "than", "least", "most", "between", "under", "over", "isn't", "except"}:
        return None
    glued = re.match(r"[A-Za-z]+|[\\^(]", text[found[at].end() :])
    if glued and (len(glued[0]) < 2 or glued[0].lower() not in _UNITS):
        return None  # 2x
    return _quantity(found[at], [])


def same(gold: Quantity, given: Quantity, percent: bool = False) -> bool:
    """Whether two quantities are equal, exactly. Well-known units must not differ; a missing one is understood."""
    if gold.unit and given.unit and gold.unit != given.unit:
        return False
    target = gold.value / 100 if gold.percent or percent else gold.value
    if given.percent or percent:
        return given.value / 100 == target
    # A gold answer with a percent sign: the bare number may have been meant either way.
    return given.value == target or (gold.percent and given.value / 100 == target)


_UNIT_BEHIND = re.compile(
    r"(.*?[\d\w)}])\s+(?:(square|sq|cubic)\s+)?([A-Za-z]{2,})\.?(\s*(?:\^\s*\{?\s*[23]\s*\}?|[²³]))?"
)


def without_unit(text: str) -> tuple[str, str]:
    """An expression and the well-known unit behind it, which may have a power."""
    found = _UNIT_BEHIND.fullmatch(text)
    unit = _UNITS.get(found[3].lower(), "") if found else ""
    if found is None or unit == "deg" or not (unit or found[3] in ("unit", "units")):  # sin 36 degrees
        return text, ""
    return found[1].strip(), f"{unit}^" if unit and (found[2] or found[4]) else unit
