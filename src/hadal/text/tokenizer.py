"""Tokenizers in the Hugging Face file format: encoding, decoding and chat prompts; and one to grow a model with.

Control tokens exist as ids only. `encode` never yields one, whatever the text says and whatever the file marks as
special; chat prompts are put together from ids (`chat`). Control is every added token that is marked as special,
that a config names (`bos_token`, ...), or that stands in brackets (`<think>`, `[INST]`): DeepSeek and Qwen leave
the mark off some. Other added tokens are ordinary text.

The tokenizer of a model grown from nothing is byte-level. Text is cut into words, whole numbers (with a sign of
result or place before them), single signs and white space, each with the space before it. A piece that stands in
the vocabulary is one token: every number from 0 to 99, single letters, and the words that the tasks themselves use.
Any other piece falls apart into its bytes, so that all Unicode text comes back exactly and a word nobody foresaw is
read letter by letter. There are no merges.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as _Tokenizer

from hadal.errors import UserError
from hadal.files import read_object, write_bytes
from hadal.text.codec import Codec, byte_alphabet
from hadal.text.encodings import ENCODINGS
from hadal.text.library import read_tokenizer

if TYPE_CHECKING:
    from hadal.text.template import ChatTemplate

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


_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_BRACKETED = re.compile(r"<\S.*>|\[\S+\]", re.DOTALL)
LONGEST_MARK = 32
"""Tokens that the mark of a thought may be spelled in, white space behind it included."""
_USUAL_ENDS = (EOS, "<|eot_id|>", "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "</s>")


class Tokenizer(Codec):
    """Encoding, decoding and chat prompts over a `tokenizers` object.

    config, generation: what tokenizer_config.json and generation_config.json say; template: the chat template,
    None for hadal's own form; files: what `save` writes, by name, as it was read.
    """

    def __init__(
        self,
        inner: _Tokenizer,
        config: Mapping[str, Any] | None = None,
        generation: Mapping[str, Any] | None = None,
        template: str | None = CHAT_TEMPLATE,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        self.size = inner.get_vocab_size()
        self._files = dict(files or {})
        self._template = template
        own = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
        added = inner.get_added_tokens_decoder()
        self._named: dict[str, str] = {}
        controls: dict[str, int] = {}
        for name in _NAMED:
            spelling = _spelling((config or own).get(name))
            index = None if spelling is None else inner.token_to_id(spelling)
            if spelling is not None and index is not None:
                self._named[name], controls[spelling] = spelling, index
        for index, extra in added.items():
            if extra.special or _BRACKETED.fullmatch(extra.content):
                controls[extra.content] = index
        super().__init__(inner, controls)
        inner.add_special_tokens([_special(added.get(i), text) for text, i in self.controls.items()])
        inner.encode_special_tokens = True  # content that spells a control token stays content

        ends = (generation or {}).get("eos_token_id")
        ends = [e for e in (ends if isinstance(ends, list) else [ends]) if isinstance(e, int)]
        if "eos_token" in self._named:
            ends.insert(0, self.controls[self._named["eos_token"]])
        ends += [self.controls[t] for t in _USUAL_ENDS if not ends and t in self.controls]
        if not ends:
            raise UserError(
                "The tokenizer has no end token.", "Add eos_token to tokenizer_config.json, as the release has it."
            )
        self.eos_id = ends[0]
        self.eos_ids = frozenset(ends)
        """Every id that ends a response, `eos_id` among them."""
        self.pad_id = self.controls[self._named["pad_token"]] if "pad_token" in self._named else self.eos_id
        if self.is_own:
            self.forbidden_ids = sorted(self.control_ids - {self.eos_id, self.think_id, self.end_think_id})
        else:
            self.forbidden_ids = sorted(set((generation or {}).get("suppress_tokens") or []))
        """Ids that a response never holds: a model is never allowed to emit them."""

    @property
    def is_own(self) -> bool:
        """Whether the chat form is hadal's own, of models grown from nothing."""
        return self._template == CHAT_TEMPLATE and all(t in self.controls for t in SPECIAL)

    def token_id(self, spelling: str) -> int:
        """The id of a control token. UserError where the tokenizer has none of that spelling."""
        index = self.controls.get(spelling)
        if index is None:
            raise UserError(f"The tokenizer lacks {spelling}.", "Use a model whose tokenizer has it.")
        return index

    @property
    def bos_id(self) -> int:
        return self.token_id(self._named.get("bos_token", BOS))

    @property
    def user_id(self) -> int:
        return self.token_id(USER)

    @property
    def assistant_id(self) -> int:
        return self.token_id(ASSISTANT)

    @property
    def think_id(self) -> int:
        return self.token_id(THINK)

    @property
    def end_think_id(self) -> int:
        return self.token_id(END_THINK)

    @property
    def think_ids(self) -> list[int]:
        """What opens a thought: a token of its own, or its spelling where the tokenizer has none."""
        return [self.controls[THINK]] if THINK in self.controls else self.encode(THINK)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        encoding: str | None = None,
        most: int | None = None,
    ) -> list[int]:
        """Prompt ids for the model's next turn, in the tokenizer's own form or a built-in one (`ENCODINGS`).

        thinking: True opens the thought, False sees to it that there is none, None leaves it to the form. hadal's
        own leaves the first token to the model, also for False (a sampler that must not think forbids `think_id`).
        Of earlier answers DeepSeek's forms keep only the text after the last `</think>`. most: `TooLong` for a prompt
        of more tokens.
        """
        if encoding is None and not self.is_own:
            return self._chat_by_template(messages, thinking, tools, most)
        name = encoding or "own"
        if name not in ENCODINGS:
            raise UserError(f"There is no chat form {name!r}.", f"Known: {', '.join(ENCODINGS)}.")
        parts = ENCODINGS[name](messages, thinking, tools)
        pieces = [part if isinstance(part, str) else self.token_id(part.decode()) for part in parts]
        return self._assemble(pieces, most)

    def _chat_by_template(
        self, messages: Sequence[Mapping[str, Any]], thinking: bool | None, tools: Sequence[Mapping[str, Any]] | None,
        most: int | None,
    ) -> list[int]:  # fmt: skip
        # The two names that releases give to the switch: DeepSeek-V3.1's and Qwen3's.
        switch = {} if thinking is None else {"thinking": thinking, "enable_thinking": thinking}
        ids = self._assemble(self._jinja.pieces(messages, tools, **switch), most)
        opened = self.in_thought(ids)
        if thinking and not opened:
            return [*ids, self.think_id]
        if thinking is False and opened and THINK not in self.controls:
            return [*ids, *self.encode(f"\n{END_THINK}\n\n")]
        if thinking is False and opened:
            last = len(ids) - ids[::-1].index(self.think_id)
            return [*ids[:last], *self.encode("\n\n"), self.end_think_id, *self.encode("\n\n")]
        return ids

    def in_thought(self, ids: Sequence[int]) -> bool:
        """Whether a prompt ends inside a thought that it has opened.

        A chat form whose tokenizer has no token for it opens one in text, which then ends the prompt.
        """
        if THINK not in self.controls:
            end = takewhile(lambda index: index not in self.control_ids, islice(reversed(ids), LONGEST_MARK))
            return self.decode([*end][::-1]).rstrip().endswith(THINK)
        marks = {self.controls.get(THINK): True, self.controls.get(END_THINK): False}
        return next((marks[i] for i in reversed(ids) if i in marks), False)

    def opening(self, prompt: Sequence[int]) -> str:
        """What of a response stands in its prompt: the mark of a thought that is opened there."""
        return THINK if self.in_thought(prompt) else ""

    @cached_property
    def _jinja(self) -> ChatTemplate:
        from hadal.text.template import ChatTemplate

        if self._template is None or self._template == CHAT_TEMPLATE:
            raise UserError(
                "The tokenizer has no chat template: is it a base model's?",
                f"Name a chat form: {', '.join(ENCODINGS)}.",
            )
        return ChatTemplate(self._template, self.controls, self._named)

    def _assemble(self, pieces: Iterable[str | int], most: int | None = None) -> list[int]:
        """Ids of a prompt. Text between two control tokens is encoded as one, whoever wrote its parts."""
        flags = self._flags
        ids: list[int] = []
        text = ""
        strips = False  # whether the control token before takes the white space behind it

        def flush() -> None:
            if text:
                ids.extend(self._encode(self._inside if ids else self.inner, text, most, len(ids)))

        for piece in pieces:
            if isinstance(piece, str):
                text += piece.lstrip() if strips and not text else piece
                continue
            before, strips = flags.get(piece, (False, False))
            text = text.rstrip() if before else text
            flush()
            ids.append(piece)
            text = ""
        flush()
        return ids

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files as transformers reads them; one that was loaded, as it was read."""
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS, "eos_token": EOS, "pad_token": PAD,
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": False,
            "chat_template": CHAT_TEMPLATE,
        }  # fmt: skip
        own = {"tokenizer.json": self.inner.to_str(), "tokenizer_config.json": json.dumps(config, indent=2)}
        for name, data in (self._files or {name: text.encode() for name, text in own.items()}).items():
            write_bytes(folder / name, data)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """The tokenizer of a checkpoint folder in the Hugging Face layout."""
        folder = Path(folder)
        path = folder / "tokenizer.json"
        files = {name: (folder / name).read_bytes() for name in _FILES if (folder / name).is_file()}
        if path.name not in files:
            raise UserError(
                f"{path} is missing.", "Give a folder that holds a finished run or a checkpoint with its tokenizer."
            )
        config = _object(folder / "tokenizer_config.json")
        generation = _object(folder / "generation_config.json")
        template = config.get("chat_template") if config else CHAT_TEMPLATE
        if isinstance(template, list):  # several templates by name
            template = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}.get("default")
        if "chat_template.jinja" in files:
            template = files["chat_template.jinja"].decode(errors="replace")
        inner = read_tokenizer(files[path.name], path)
        return cls(inner, config or None, generation, template if isinstance(template, str) else None, files)

    @classmethod
    def from_words(cls, words: Iterable[str]) -> Tokenizer:
        """A tokenizer whose vocabulary is bytes, numbers to 99 (plain, as results and as places), letters and the
        given pieces."""
        letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
        pieces = [" " + letter for letter in letters]
        pieces += [str(n) for n in range(10, 100)] + [f" {n}" for n in range(100)]
        pieces += [f" ={n}" for n in range(100)] + [f" #{n}" for n in range(1, 31)]
        pieces += sorted(set(words))
        alphabet = byte_alphabet()
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


def _spelling(named: Any) -> str | None:
    """A token that a config names, as text or as an object with its flags."""
    text = named.get("content") if isinstance(named, dict) else named
    return text if isinstance(text, str) and text else None


def _special(token: AddedToken | None, text: str) -> AddedToken:
    """An added token marked as special, its other flags as they were."""
    if token is None:
        return AddedToken(text, special=True, normalized=False)
    flags = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
    return AddedToken(text, special=True, **flags)


def _object(path: Path) -> dict[str, Any]:
    """A JSON file's object; an absent file has none."""
    return read_object(path, "Restore it from where the model came from.") if path.is_file() else {}
