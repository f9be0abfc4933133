"""Maths answers: equal meanings are right, near misses are wrong, and nothing that a model can write breaks it."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hadal.tasks.answers import Quantity, Verdict, check, decide, final_answer, quantity, same

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


@pytest.mark.parametrize(("gold", "answer", "percent"), EQUIVALENT)
def test_equal_meanings_are_right(gold: str, answer: str, percent: bool) -> None:
    assert decide(gold, answer, percent) == Verdict(True)


@pytest.mark.parametrize(("gold", "answer", "percent"), NEAR_MISSES)
def test_near_misses_are_not_right(gold: str, answer: str, percent: bool) -> None:
    verdict = decide(gold, answer, percent)
    assert verdict is None or (not verdict.right and verdict.note)
