"""How much of a text is in a language, told by the script of its words.

R1 rewards the share of target-language words in the thought, against thoughts that mix Chinese and English. Scripts
tell such languages apart; they do not tell English from French, so a mixture of two Latin languages goes unseen.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from hadal import rewards
from hadal.errors import UserError
from hadal.rewards import Answer
from hadal.text.parse import parse_response

_HAN = ("CJK",)
SCRIPTS = {
    "en": ("LATIN",), "de": ("LATIN",), "fr": ("LATIN",), "es": ("LATIN",), "it": ("LATIN",), "pt": ("LATIN",),
    "zh": _HAN, "ja": (*_HAN, "HIRAGANA", "KATAKANA"), "ko": ("HANGUL", *_HAN), "ru": ("CYRILLIC",),
    "uk": ("CYRILLIC",), "el": ("GREEK",), "ar": ("ARABIC",), "he": ("HEBREW",), "hi": ("DEVANAGARI",), "th": ("THAI",),
}  # fmt: skip
"""The scripts that each language is written in, by the first word of their letters' Unicode names."""

_LETTERS = re.compile(r"[^\W\d_]+")
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI")  # written without spaces: each letter counts as a word


@dataclass(frozen=True)
class Options(rewards.Options):
    """Which language."""

    target_language: str = "en"

    def __post_init__(self) -> None:
        if self.target_language not in SCRIPTS:
            raise UserError(
                f"target_language is {self.target_language!r}.", f"Known: {', '.join(sorted(SCRIPTS))}."
            )


@lru_cache(maxsize=4096)
def script(letter: str) -> str:
    """LATIN, CJK, CYRILLIC, ... of a letter."""
    return unicodedata.name(letter, "UNKNOWN").split(" ")[0]


def words(text: str) -> list[str]:
    """The script of each word: a run of letters of one script, or a single letter where words have no gaps.

    Numbers and signs are no words, and a variable name in another alphabet counts like any word.
    """
    found: list[str] = []
    for run in _LETTERS.findall(text):
        last = ""
        for letter in run:
            now = script(letter)
            if now != last or now in _UNSPACED:
                found.append(now)
            last = now
    return found


def language_share(thought: str, language: str) -> float:
    """Words of the language / words, from 0 to 1 (R1, arXiv 2501.12948).

    A thought of numbers alone has nothing foreign in it and gets 1; no thought gets 0.
    """
    found = words(thought)
    if not found:
        return float(bool(thought.strip()))
    return sum(word in SCRIPTS[language] for word in found) / len(found)


def foreign_share(text: str, question: str, language: str = "en") -> float:
    """Words in a script that neither the language nor the question is written in / words; 0 where there are none."""
    known, found = {*SCRIPTS[language], *words(question)}, words(text)
    return sum(word not in known for word in found) / len(found) if found else 0.0


def reward(answer: Answer, options: Options) -> float:
    """The share of the thought."""
    return language_share(parse_response(answer.text).thought or "", options.target_language)
