"""A task of one's own without thoughts, so hadal learns to answer at once. hadal quickstart --task FILE"""

from hadal.tasks import Problem, Rng

about = "say whether a row of digits has an even or odd sum"
difficulties = range(2, 9)  # how many digits
default_difficulty = 4


def generate(rng: Rng, difficulty: int) -> Problem:
    """Random digits; there is no worked thought, so there is nothing to learn thinking from."""
    digits = [rng.below(10) for _ in range(difficulty)]
    text = " ".join(map(str, digits))
    return Problem(f"Is the sum of {text} even or odd?", "even" if sum(digits) % 2 == 0 else "odd", {"key": text})
