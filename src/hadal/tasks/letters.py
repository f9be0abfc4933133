"""Counting letters: 'How many r are there in strawberry?' Difficulty is the length of the word."""

from __future__ import annotations

import re

from hadal.tasks.base import Rng, Split, Task

ONSETS = "b c d f g h k l m n p r s t v w br cl dr fl gr pl pr sl sp st str tr th ch sh bl cr".split()
NUCLEI = "a e i o u a e i o a e ee oo ea ai ou".split()
CODAS = "n r s t l m nd rt st ll ss tt rr pp n r s t".split()
WORDS = """apple banana cherry orange lemon melon grape peach raspberry blueberry pineapple coconut potato tomato
carrot onion pepper cabbage spinach broccoli butter cheese coffee bottle kettle window mirror garden flower
summer winter spring autumn monday tuesday wednesday thursday saturday january february september october
november december rabbit squirrel giraffe elephant penguin butterfly kangaroo crocodile hippopotamus dolphin
mountain river valley forest island harbour village kitchen bedroom bathroom library hospital restaurant
computer keyboard internet telephone letter message question answer teacher student professor parliament
mississippi committee address success possess balloon parallel vacuum cappuccino spaghetti mozzarella
tennessee assassin bookkeeper successful possession grammar happiness football basketball""".split()


def word_of_length(rng: Rng, length: int) -> str:
    """A pronounceable word nobody has seen, or now and then a real one."""
    if rng.below(8) == 0:
        real = [word for word in WORDS if len(word) == length]
        if real:
            return rng.choice(real)
    # Few syllables, repeated: so that a letter occurs often enough for counting to be work.
    syllables = [
        rng.choice(ONSETS) + rng.choice(NUCLEI) + (rng.choice(CODAS) if rng.below(3) == 0 else "")
        for _ in range(2 + length // 5)
    ]
    word = ""
    while len(word) < length:
        word += rng.choice(syllables)
    return word[:length]


class Letters(Task):
    """The thought spells the word with a running count."""

    name = "letters"
    about = "count a letter in a word"
    phrasings = (
        "How many {letter} in {word}?",
        "How many {letter} are there in {word}?",
        "How often does {letter} occur in {word}?",
        "Count the {letter} in {word}.",
        "How many times do you see {letter} in {word}?",
    )
    gold_limit = 10
    default_difficulty = 9
    difficulties = range(3, 31)

    def draw(self, rng: Rng, difficulty: int) -> tuple[dict[str, str], str]:
        word = word_of_length(rng, difficulty)
        letter = rng.choice(word) if rng.below(8) else rng.choice("abcdefghijklmnopqrstuvwxyz")
        return {"letter": letter, "word": word}, word

    def side(self, key: str) -> Split:
        return "held_out" if key == "strawberry" else super().side(key)

    def solve(self, fields: dict[str, str]) -> tuple[str, str] | None:
        letter, word = fields["letter"].strip("'\"").removesuffix("'s"), fields["word"].strip("'\"")
        if not re.fullmatch("[a-z]", letter) or not re.fullmatch("[a-z]{1,100}", word):
            return None
        count, thought = 0, ""
        for character in word:
            count += character == letter
            thought += f" {character} {count}"
        return str(count), thought
