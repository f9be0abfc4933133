"""Maths answers: equal meanings are right, near misses are wrong, and nothing that a model can write breaks it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest
from answer_cases import FORMS, NO_ANSWERS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hadal.errors import UserError
from hadal.tasks.answers import Verdict, check, decide, final_answer
from hadal.tasks.forms import compare
from hadal.tasks.maths import asks_for_percentage
from hadal.tasks.quantities import Quantity, quantity, same, tidy
from hadal.tasks.symbolic import Checker


@pytest.fixture(scope="module")
def checker() -> Iterator[Checker]:
    pytest.importorskip("math_verify")
    made = Checker(deadline=60.0)  # the machine may be busy
    yield made
    made.close()


# ------------------------------------------------------------------------------------- by hand
# (gold, answer, whether the question asks for a percentage)

EQUIVALENT = [
    ("1234", "1,234.00", False),
    ("3/4", "\\boxed{3/4}", False),
    ("0.75", "\\boxed{\\frac{3}{4}}", False),
    ("3/4", "0.75", False),
    ("75", "75%", True),
    ("75", "\\boxed{75\\%}", True),
    ("75\\%", "\\boxed{75}", False),
    ("0.05", "5%", False),
    ("5\\%", "0.05", False),
    ("12", "12 apples", False),
    ("12", "\\boxed{12 \\text{ apples}}", False),
    ("18", "\\boxed{\\$18.00}", False),
    ("18", "The total is $18.", False),
    ("18", "She makes 9 * 2 = $18 every day.", False),
    ("5", "x=5", False),
    ("5", "\\boxed{x = 5}", False),
    ("-5", "\\(-5\\)", False),
    ("-5", "\\boxed{−5}", False),
    ("-1/2", "$-\\dfrac{1}{2}$", False),
    ("-\\frac{1}{2}", "\\boxed{\\frac{-1}{2}}", False),
    ("2.5", "\\boxed{2\\frac{1}{2}}", False),
    ("5/2", "2 1/2", False),
    ("1000", "1\\,000", False),
    ("1000", "1{,}000", False),
    ("1200000", "1.2 million", False),
    ("1200000", "\\boxed{1.2 \\times 10^{6}}", False),
    ("90^\\circ", "\\boxed{90}", False),
    ("90", "90°", False),
    ("36", "\\boxed{36 \\text{ cm}^2}", False),
    ("36\\text{ cm}", "36 centimeters", False),
    (".5", "0.50", False),
    ("073", "\\boxed{73}", False),
    ("18", "It is 17. No, wait: **Answer:** 18 eggs", False),
    ("18", "I first got \\boxed{17}, but it is \\boxed{18}.", False),
    ("18", "... = <<9*2=18>>18\n#### 18", False),
    ("\\text{Evelyn}", "\\boxed{Evelyn}", False),
    ("\\text{(C)}", "\\boxed{C}", False),
    ("(3, \\frac{\\pi}{2})", "\\boxed{\\left( 3,\\dfrac{\\pi}{2} \\right)}", False),
    ("18", "<answer> 18 </answer>", False),
    ("42", "答案是：42", False),
]

NEAR_MISSES = [
    ("75", "0.75", False),
    ("0.75", "75", False),
    ("75", "0.75", True),
    ("75", "75%", False),
    ("5", "0.05", True),
    ("0.05", "5", False),
    ("1/3", "0.33", False),
    ("1/3", "33.3%", False),
    ("5", "-5", False),
    ("-5", "\\boxed{5}", False),
    ("1000", "1.000", False),
    ("1", "1,000", False),
    ("12", "10-12", False),
    ("12", "between 10 and 12", False),
    ("12", "10 to 12", False),
    ("12", "\\boxed{10 - 12}", False),
    ("4", "The answer is 3 or 4.", False),
    ("3", "The answer is 3 or 4.", False),
    ("3", "\\boxed{3, 4}", False),
    ("3", "\\boxed{x = 4 \\text{ or } x = 3}", False),
    ("5", "x > 5", False),
    ("5", "\\boxed{x \\geq 5}", False),
    ("5", "at least 5", False),
    ("5", "The answer is not 5.", False),
    ("12", "1/2", False),
    ("21/2", "2 1/2", False),
    ("2", "\\boxed{2x}", False),
    ("2", "2 million", False),
    ("5 \\text{ cm}", "5 m", False),
    ("5 \\text{ cm}^2", "5 cm", False),
    ("\\$5", "5 cents", False),
    ("18", "\\boxed{19} and 18", False),
    ("18", "It was 18, I mean 19.", False),
    ("18", "\\boxed{18", False),
    ("18", "\\boxed{}", False),
    ("18", "", False),
    ("1000", "100", False),
    ("18", "The box reads \\boxed{eighteen} of 18", False),
    ("\\text{Evelyn}", "\\boxed{\\text{Evelin}}", False),
    ("\\text{(C)}", "\\boxed{(B)}", False),
    ("7", "1/0 = 7/0", False),
    ("100", "1e2e", False),
]


@pytest.mark.parametrize(("gold", "answer"), NO_ANSWERS)
def test_an_answer_is_one_value_and_worked_out(checker: Checker, gold: str, answer: str) -> None:
    verdict = checker(gold, answer)
    assert not verdict.right and verdict.note and not verdict.broke
    decided = decide(gold, answer)
    assert decided is None or not decided.right


@pytest.mark.parametrize(("gold", "answer"), FORMS)
def test_an_answer_may_be_written_in_many_ways(checker: Checker, gold: str, answer: str) -> None:
    assert checker(gold, answer) == Verdict(True)


@pytest.mark.parametrize(("gold", "answer", "percent"), EQUIVALENT)
def test_equal_meanings_are_right(gold: str, answer: str, percent: bool) -> None:
    assert decide(gold, answer, percent) == Verdict(True)


@pytest.mark.parametrize(("gold", "answer", "percent"), NEAR_MISSES)
def test_near_misses_are_not_right(gold: str, answer: str, percent: bool) -> None:
    verdict = decide(gold, answer, percent)
    assert verdict is None or (not verdict.right and verdict.note)


def test_there_are_enough_of_both() -> None:
    assert len(EQUIVALENT) >= 30 and len(NEAR_MISSES) >= 30


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a \\boxed{1} b \\boxed{\\frac{1}{2}} c", "\\frac{1}{2}"),
        ("\\boxed{\\left\\{1, 2\\right.}", "\\left\\{1, 2\\right."),
        ("$\\boxed 3$.", "3"),
        ("\\fbox{7}", "7"),
        ("\\boxed{1} and \\boxed{2", None),
        ("The answer is 4 because.\nThe answer: 5", "5"),
        ("Answer:\n\n  6\nbye", "6"),
        ("first 3\nthen 4\n\nI hope that this helps!", "then 4"),
        ("<think>1</think><answer>8</answer> or so", "8"),
        ("", None),
        (" \n ", None),
    ],
)
def test_the_answer_is_found(text: str, expected: str | None) -> None:
    found = final_answer(text)
    assert (found and found.text.strip()) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("70 miles per hour", Quantity(Fraction(70))), ("-$3.50", Quantity(Fraction(-7, 2), unit="$")),
        ("$-3.50", Quantity(Fraction(-7, 2), unit="$")), ("minus 4 degrees", Quantity(Fraction(-4), unit="deg")),
        ("12.5 percent", Quantity(Fraction(25, 2), percent=True)), ("5e-3", Quantity(Fraction(1, 200))),
        ("about 12 eggs.", Quantity(Fraction(12))), ("x = y = 5", Quantity(Fraction(5))),
        ("6 square feet", Quantity(Fraction(6), unit="ft^")), ("1 234 567", Quantity(Fraction(1234567))),
        ("x^2 - 7 = 0", None), ("2 + 3", None), ("3:4", None), ("(1,2)", None), ("1,00", None), ("2\\sqrt{3}", None),
        ("1/0", None), ("5 or so", None), ("twelve", None), ("2 pi", None), ("1/2/2020", None), ("1.2.3", None),
        ("2\\pi", None), ("3 hundredths", None), ("5^2", None), ("5!", None), ("5²", None),
        ("square root of 16", None), ("", None), ("10^{10^{10}}", None), ("1e9999", None),
    ],
)  # fmt: skip
def test_plain_numbers_are_read_and_nothing_else(text: str, expected: Quantity | None) -> None:
    assert quantity(text) == expected


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        ("What percentage of the wolves is grey?", True),
        ("By what percent did it rise? Round to the nearest percent.", True),
        ("Express the share as a percentage.", True),
        ("If 40% of 200 chairs are broken, how many are whole?", False),
        ("He sells 60 percent of them. How much money has he?", False),
        ("What percentage is paid by card? How many people is that?", True),
    ],
)
def test_a_question_for_a_percentage_is_recognised(question: str, asked: bool) -> None:
    assert asks_for_percentage(question) is asked


# ------------------------------------------------------------------------------------- whatever a model can write

PIECES = st.sampled_from(
    "\\boxed{ } \\frac { ( ) $ % ^ _ = , . - + / 1 23 4,567 0 .5 e 10^ 10^{10^{10}} x \\text{ and or answer is #### "
    "<answer> </answer> \\sqrt \\left \\{ million ° – ½ 四 ٣ ² \n \0 E9 e999 ``` 999999999999999999999 :".split(" ")
)
SIGNS = st.text("\\{}()[]$%^_=,.-+/*!?<>:;#~& \n\t\0xeImM019½²٣四−–°é🦑\ud800", max_size=300)
ANY_TEXT = st.one_of(SIGNS, st.lists(PIECES, max_size=40).map("".join), st.lists(PIECES).map(" ".join))
NUMBERS = st.builds(
    Quantity, st.fractions(max_denominator=999), st.just(False), st.sampled_from(["", "", "$", "cm", "cm^"])
)
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a machine that is busy


@settings(UNHURRIED, max_examples=400)
@given(ANY_TEXT, ANY_TEXT, st.booleans())
def test_no_text_breaks_the_comparison(gold: str, answer: str, percent: bool) -> None:
    for text in (answer, f"\\boxed{{{answer}}}"):
        verdict = decide(gold, text, percent)
        assert verdict is None or verdict.right in (True, False)


FORMULAS = st.lists(
    st.sampled_from(
        "1 2 .5 1/2 2^{99} 10^{10^{10}} x y e i \\pi \\infty + - * / ^ _ ! % | = < \\le \\pm \\cup , ; ( ) [ ] { } \\{ "
        "\\} \\frac \\sqrt \\binom{5}{2} \\sin \\log_2 \\begin{pmatrix} \\end{pmatrix} & \\\\ or and cm degrees ² √ "
        "½ 52_8 ≈ ((( ---".split(" ")
    ),
    max_size=25,
).map(" ".join)  # fmt: skip


@settings(UNHURRIED, max_examples=200)
@given(FORMULAS, FORMULAS)
def test_no_formula_breaks_the_comparison_of_forms(gold: str, answer: str) -> None:
    assert compare(tidy(gold), tidy(answer)) in (True, False, None)
    assert compare("391", tidy(answer)) in (True, False)
    compare("\\{" * 200 + gold, "(" * 200 + answer)


@settings(UNHURRIED)
@given(PIECES, st.integers(1, 20_000))
def test_long_repetitions_take_no_time(piece: str, times: int) -> None:
    started = time.process_time()
    decide("1", piece * times)
    decide(piece * times, f"{piece} 7 " * (times // 10))
    assert time.process_time() - started < 2


@UNHURRIED
@given(NUMBERS, NUMBERS)
def test_equality_of_numbers_without_percent_is_symmetric(one: Quantity, other: Quantity) -> None:
    assert same(one, one) and same(one, other) == same(other, one)


@UNHURRIED
@given(st.fractions(max_denominator=999), st.fractions(max_denominator=999))
def test_numbers_are_right_exactly_when_they_are_equal(one: Fraction, other: Fraction) -> None:
    fraction = f"\\boxed{{{'-' * (other < 0)}\\frac{{{abs(other.numerator)}}}{{{other.denominator}}}}}"
    assert decide(str(one), fraction) == (Verdict(True) if one == other else Verdict(False, "a different number"))


@UNHURRIED
@given(st.integers(-(10**12), 10**12), st.integers(0, 99))
def test_thousands_and_decimals_are_one_number(whole: int, cents: int) -> None:
    gold = f"{whole}.{cents:02}"
    assert decide(gold, f"\\boxed{{\\${whole:,}.{cents:02}}}") == Verdict(True)
    assert decide(gold, f"It comes to {whole:,}.{cents:02}0 dollars.") == Verdict(True)


# ------------------------------------------------------------------------------------- math-verify


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("2\\sqrt{3}", "\\boxed{\\sqrt{12}}", True),
        ("x^2+1", "\\boxed{1 + x^2}", True),
        ("\\{1,2\\}", "\\boxed{\\{2, 1\\}}", True),
        ("(3, 4)", "\\boxed{(3.0,4)}", True),
        ("1024", "\\boxed{2^{10}}", True),
        ("(3, 4)", "\\boxed{(4,3)}", False),
        ("[0,1)", "\\boxed{[0,1]}", False),
        ("2\\sqrt{3}", "\\boxed{3.46}", False),
        ("x > 5", "\\boxed{5}", False),
    ],
)
def test_symbolic_answers_are_compared_by_math_verify(checker: Checker, gold: str, answer: str, right: bool) -> None:
    assert decide(gold, answer) is None  # so it is math-verify that is asked
    assert checker(gold, answer).right is right


def test_near_misses_stay_wrong_where_math_verify_is_asked(checker: Checker) -> None:
    undecided = [case for case in NEAR_MISSES if decide(*case) is None]
    assert undecided and not [case for case in undecided if checker(*case).right]


def test_a_formula_that_hangs_costs_one_verdict(checker: Checker) -> None:
    short = Checker(deadline=5.0)  # the second question has to fit in, also on a busy machine
    started = time.monotonic()
    verdict = short("\\int_0^1 x^2 dx", "\\boxed{10^{10^{10}}}")
    assert not verdict.right and "no answer in 5 s" in verdict.note and time.monotonic() - started < 180
    assert verdict.broke
    assert short("\\sqrt{2}", "\\boxed{\\frac{2}{\\sqrt{2}}}") == Verdict(True)  # a new process
    short.close()


def test_many_threads_share_the_processes(checker: Checker) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda n: checker(f"\\sqrt{{{n * n * 2}}}", f"\\boxed{{{n}\\sqrt{{2}}}}").right, range(2, 18))
        )
    assert found == [True] * 16


def test_without_math_verify_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(UserError, match="hadal\\[maths\\]"):
        check("\\int x dx", "\\boxed{x^2/2}")
