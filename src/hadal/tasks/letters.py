"""Counting letters: 'How many r are there in strawberry?' Difficulty is the length of the word."""

from __future__ import annotations

import re

from hadal.rng import Rng
from hadal.tasks.base import Split, Task

ONSETS = "b c d f g h k l m n p r s t v w br cl dr fl gr pl pr sl sp st str tr th ch sh bl cr".split()
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
    """A pronounceable word nobody has seen, or now and then a real one.

    Made-up words use few vowels, so that letters come back and counting is work, but no pair of letters
    twice where that can be had: as in most real words, two letters tell where in the word one is.
    """
    if rng.below(40) == 0:  # seldom: a held-out real word would come up again and again
        real = [word for word in WORDS if len(word) == length]
        if real:
            return rng.choice(real)
    for _ in range(8):
        vowels = rng.sample("aeiou", 2)
        word = ""
        while len(word) < length:
            word += rng.choice(ONSETS) + rng.choice(vowels) + (rng.choice(CODAS) if rng.below(2) else "")
        word = word[:length]
        if len({word[i : i + 2] for i in range(length - 1)}) == length - 1:
            break
    return word


class Letters(Task):
    """The thought spells the word and counts aloud at each hit."""

    name = "letters"
    about = "count a letter in a word"
    phrasings = (
        "How many {letter} in {word}?",
        "How many {letter} are there in {word}?",
        "How often does {letter} occur in {word}?",
        "Count the {letter} in {word}.",
        "How many times do you see {letter} in {word}?",
    )
    gold_limit = 12
    default_difficulty = 11
    difficulties = range(3, 31)

    def draw(self, rng: Rng, difficulty: int) -> tuple[dict[str, str], str]:
        word = word_of_length(rng, difficulty)
        letter = max(rng.sample(word, 2), key=word.count) if rng.below(8) else rng.choice("abcdefghijklmnopqrstuvwxyz")
        return {"letter": letter, "word": word}, word

    def side(self, key: str) -> Split:
        return "held_out" if key == "strawberry" else super().side(key)

    def solve(self, fields: dict[str, str]) -> tuple[str, str] | None:
        letter, word = fields["letter"].strip("'\"").removesuffix("'s"), fields["word"].strip("'\"")
        if not re.fullmatch("[a-z]", letter) or not re.fullmatch("[a-z]{1,100}", word):
            return None
        count, thought = 0, ""
        for character in word:
            thought += f" {character}"
            if character == letter:
                count += 1
                thought += f" ={count}"
        return str(count), thought
