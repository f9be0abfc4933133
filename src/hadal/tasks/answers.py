"""Maths answers: which part of a text is the answer, and whether it means the same as the gold one.

Plain numbers (`hadal.tasks.quantities`) and equal wording are decided here, anywhere. Roots, sets, intervals, formulas
are compared part by part (`hadal.tasks.forms`), and what that cannot read by math-verify, which may hang: so `check`
belongs in a process that can be killed (`hadal.tasks.symbolic`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hadal.errors import UserError
from hadal.tasks.quantities import LONGEST, SENTENCE, quantity, same, spoken, tidy, without_unit

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


# ------------------------------------------------------------------------------------- where the answer is

_CUE = re.compile(r"####|\banswer(?:\*\*)?\s*(?:is|are|[:=：])|答案(?:是|为)?\s*[:：]?", re.IGNORECASE)
_TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*)</answer>", re.DOTALL)
_BOX = re.compile(r"\\f?box(?:ed)?(?![A-Za-z])\s*")
_OPEN = re.compile(r"\b(?:or|not|nor|either|neither|between|least|most|than)\b", re.IGNORECASE)
"""What leaves open which formula of a sentence is meant, or denies it."""
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


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
        number = quantity(final.text) if final.boxed else spoken(final.text, final.told)
        if number is not None:
            return Verdict(True) if same(right, number, percent) else Verdict(False, "a different number")
        return None if final.boxed else Verdict(False, "not a single number")
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
    number = quantity(final.text) if final.boxed else spoken(final.text, final.told)
    if number is None:
        return _plain(final.text).casefold()
    return f"{number.value / 100 if number.percent else number.value} {number.unit}".strip()


def check(gold: str, answer: str, percent: bool = False) -> Verdict:
    """`decide`, and where that does not the comparison of forms, or math-verify's. It can hang and take any amount of
    memory.

    UserError where math-verify is not installed.
    """
    decided = decide(gold, answer, percent)
    if decided is not None:
        return decided
    final = final_answer(answer)
    assert final is not None  # decide has said no
    given = _mathematics(final)
    if len(given) > LONGEST or len(gold) > LONGEST:
        return Verdict(False, "too long for an answer")
    from hadal.tasks.forms import compare

    (wanted, unit), (given, other) = without_unit(tidy(gold)), without_unit(given)
    if unit and other and unit != other:
        return Verdict(False, "another unit")
    equal = compare(wanted, given)
    if equal is not None:
        return Verdict(True) if equal else Verdict(False, "a different value or form")
    return _by_math_verify(wanted, given)


def _mathematics(final: Final) -> str:
    """What of a final answer is mathematics: of a sentence the whole where it is that, else one formula in it."""
    if final.boxed:
        return tidy(final.text)
    from hadal.tasks.forms import readable

    sentences = SENTENCE.split(final.text.strip())
    last = next((each for each in reversed(sentences) if re.search(r"[\d$\\]", each)), sentences[-1])
    text = sentences[0] if final.told else last
    whole = tidy(re.sub(r"\$|\\[()\[\]]", " ", text))
    if _OPEN.search(_FORMULA.sub(" ", text)):
        return whole
    formulas = [next(group for group in found if group) for found in _FORMULA.findall(text)]
    tried = [whole, *(map(tidy, formulas if final.told else reversed(formulas))), whole.rpartition("=")[2].strip()]
    return next((text for text in tried if readable(text)), whole)


def _by_math_verify(gold: str, given: str) -> Verdict:
    try:
        from math_verify import LatexExtractionConfig, parse, verify
    except ImportError:
        raise UserError(
            "Symbolic answers are compared by math-verify.", "Install it: pip install 'hadal[maths]'."
        ) from None
    # As a formula or not at all: it would look for some number in what it cannot read.
    wanted, found = (
        parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
        for text in (gold, given)
    )
    if not found:
        return Verdict(False, "cannot be read as maths")
    equal = verify(wanted, found, timeout_seconds=None)
    return Verdict(True) if equal else Verdict(False, "not equal by math-verify")
