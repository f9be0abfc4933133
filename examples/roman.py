"""A task of one's own, with thoughts: reading Roman numerals. hadal quickstart --task examples/roman.py"""

from hadal.tasks import Problem, Rng

about = "read Roman numerals up to 99"
difficulties = range(1, 8)  # how many letters the numeral has
default_difficulty = 5
gold_limit = 6

VALUES = {"x": 10, "l": 50, "c": 100, "v": 5, "i": 1}
TENS = ["", "x", "xx", "xxx", "xl", "l", "lx", "lxx", "lxxx", "xc"]
ONES = ["", "i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix"]


def generate(rng: Rng, difficulty: int) -> Problem:
    """A numeral of the wanted length; the thought reads it letter by letter with a running total."""
    fitting = [n for n in range(1, 90) if len(TENS[n // 10] + ONES[n % 10]) == difficulty]
    number = rng.choice(fitting)
    plus = rng.between(10, 99 - number)
    numeral = TENS[number // 10] + ONES[number % 10]
    total, steps = plus, []
    for letter, following in zip(numeral, numeral[1:] + "i", strict=True):
        smaller = VALUES[letter] < VALUES[following]
        total += -VALUES[letter] if smaller else VALUES[letter]
        steps.append(f"{letter} {'-' if smaller else '+'} {VALUES[letter]} = {total}")
    question = rng.choice(["What is {} plus {}?", "Add {} and {}."]).format(numeral, plus)
    return Problem(question, str(number + plus), {"key": f"{numeral} {plus}"}, thought=" ".join(steps))


def score(problem: Problem, answer: str) -> bool:
    """Right is the same number, however it is written."""
    return answer.isascii() and answer.isdigit() and int(answer) == int(problem.answer)
