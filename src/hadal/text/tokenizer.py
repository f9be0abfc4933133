"""A byte-level tokenizer for models grown from nothing, in the Hugging Face file format.

Text is cut into words, whole numbers (with a sign of result or place before them), single signs and white
space, each with the space before it. A piece that stands in the vocabulary is one token: every number from 0 to
99, single letters, and the words that the tasks themselves use. Any other piece falls apart into its bytes, so
that all Unicode text comes back exactly and a word nobody foresaw is read letter by letter. There are no merges.

Control tokens exist as ids only. `encode` never yields one, whatever the text says; chat prompts are put
together from ids (`chat`).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as _Tokenizer

from hadal.errors import UserError

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
THINK, END_THINK = "<think>", "</think>"
SPECIAL = [
    BOS, EOS, PAD, THINK, END_THINK, USER, ASSISTANT,
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>",
    "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>",
    "<｜tool▁sep｜>",
]  # fmt: skip
"""DeepSeek's control tokens, as R1 spells them; these ids come first in the vocabulary."""

PIECES = r" ?\p{L}+| ?[=#]?\p{N}+| ?[^\s\p{L}\p{N}]|\s"
"""`=19` and `#3` are pieces of their own: a thought's results and places are then other tokens than the numbers
of the question, and a model that looks for where it is in the question is not led astray by them."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}"
    "{{ '<｜Assistant｜>' + m['content'].split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)


def _byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes in byte-level vocabularies, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    out, extra = [], 0
    for byte in range(256):
        if byte in printable:
            out.append(chr(byte))
        else:
            out.append(chr(256 + extra))
            extra += 1
    return out


class Tokenizer:
    """Encoding, decoding and the R1 chat form over a `tokenizers` object."""

    def __init__(self, inner: _Tokenizer) -> None:
        self.inner = inner
        inner.encode_special_tokens = True  # content that spells a control token stays content
        ids: dict[str, int] = {}
        for token in SPECIAL:
            index = inner.token_to_id(token)
            if index is None:
                raise UserError(f"The tokenizer lacks {token}.", "Is tokenizer.json the run's own?")
            ids[token] = index
        self.bos_id, self.eos_id, self.pad_id = ids[BOS], ids[EOS], ids[PAD]
        self.user_id, self.assistant_id = ids[USER], ids[ASSISTANT]
        self.think_id, self.end_think_id = ids[THINK], ids[END_THINK]
        self.control_ids = frozenset(ids.values())
        self.size = inner.get_vocab_size()

    @property
    def forbidden_ids(self) -> list[int]:
        """Control ids that a response never holds: a model is never allowed to emit them."""
        return sorted(self.control_ids - {self.eos_id, self.think_id, self.end_think_id})

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; never a control id. UserError for lone surrogates, which are no Unicode text."""
        try:
            return self.inner.encode(text, add_special_tokens=False).ids
        except TypeError:
            if not isinstance(text, str):
                raise
            raise UserError(f"{ascii(text)} is not Unicode text.", "Give it in UTF-8.") from None

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts at once."""
        return [e.ids for e in self.inner.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Text of ids; control tokens are left out, or spelled where `special`."""
        kept = [i for i in ids if special or i not in self.control_ids]
        return self.inner.decode(kept, skip_special_tokens=False)

    def chat(self, messages: list[dict[str, str]], thinking: bool | None = None) -> list[int]:
        """Prompt ids in R1's form; of earlier answers only the text after the last `</think>` is kept.

        thinking: True opens the thought, None and False leave the first token to the model (a sampler
        that must not think forbids `think_id`).
        """
        ids = [self.bos_id]
        for message in messages:
            role, content = message["role"], message["content"]
            if role == "system":
                ids += self.encode(content)
            elif role == "user":
                ids += [self.user_id, *self.encode(content)]
            elif role == "assistant":
                ids += [self.assistant_id, *self.encode(content.split(END_THINK)[-1]), self.eos_id]
            else:
                raise ValueError(f"unknown role {role!r}")
        ids.append(self.assistant_id)
        return [*ids, self.think_id] if thinking else ids

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json as transformers reads them."""
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS, "eos_token": EOS, "pad_token": PAD,
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": False,
            "chat_template": CHAT_TEMPLATE,
        }  # fmt: skip
        for name, text in (
            ("tokenizer.json", self.inner.to_str()),
            ("tokenizer_config.json", json.dumps(config, indent=2)),
        ):
            temporary = folder / (name + ".part")
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, folder / name)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """The tokenizer of a checkpoint folder."""
        path = Path(folder) / "tokenizer.json"
        try:
            return cls(_Tokenizer.from_str(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise UserError(f"{path} is missing.", "Give a folder that holds a finished run or a checkpoint.") from None
        except UserError:
            raise
        except Exception as error:  # the library raises bare Exception for any malformed file
            raise UserError(f"{path} cannot be read ({error}).", "Restore it or start anew.") from None

    @classmethod
    def from_words(cls, words: Iterable[str]) -> Tokenizer:
        """A tokenizer whose vocabulary is bytes, numbers to 99 (plain, as results and as places), letters and the
        given pieces."""
        letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
        pieces = [" " + letter for letter in letters]
        pieces += [str(n) for n in range(10, 100)] + [f" {n}" for n in range(100)]
        pieces += [f" ={n}" for n in range(100)] + [f" #{n}" for n in range(1, 31)]
        pieces += sorted(set(words))
        alphabet = _byte_alphabet()
        vocabulary: dict[str, int] = {}
        for token in [*SPECIAL, *alphabet, *("".join(alphabet[b] for b in p.encode()) for p in pieces)]:
            vocabulary.setdefault(token, len(vocabulary))
        inner = _Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        inner.decoder = decoders.ByteLevel()
        inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
        return cls(inner)

    @classmethod
    def from_texts(cls, texts: Sequence[str], share: float = 0.004) -> Tokenizer:
        """`from_words` with the pieces that occur in at least `share` of the texts.

        Words that problems are about (the word whose letters are counted) are rare and so stay letters;
        words that questions and thoughts are made of become one token each.
        """
        splitter = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
        seen: Counter[str] = Counter()
        for text in texts:
            seen.update({piece for piece, _ in splitter.pre_tokenize_str(text)})
        return cls.from_words(piece for piece, n in seen.items() if n >= share * len(texts) and len(piece) > 1)
