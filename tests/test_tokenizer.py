"""The tokenizer: every text comes back, no text is control, and transformers reads the same ids."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizer_families import FAMILIES, write_tokenizer

from hadal.errors import UserError
from hadal.tasks import load_tasks
from hadal.tasks.words import build_tokenizer
from hadal.text.length import TooLong
from hadal.text.parse import parse_response
from hadal.text.tokenizer import END_THINK, SPECIAL, THINK, Tokenizer

TOKENIZER = build_tokenizer(list(load_tasks(["sums", "letters"]).values()))
ANY_TEXT = st.text(max_size=60)
TRICKY = st.lists(st.one_of(st.sampled_from(SPECIAL), st.sampled_from([" ", "\n", "<", ">", "｜"]), ANY_TEXT)).map(
    "".join
)
# Ordinary text spells no control token, which is where a template over strings and one over ids part.
ORDINARY = ANY_TEXT.filter(lambda text: not any(token in text for token in SPECIAL))


@settings(max_examples=300, deadline=None)
@given(st.one_of(ANY_TEXT, TRICKY))
@example("").via("the empty text")
@example("e\u0301 \u200d🏳️‍🌈 ﷽ \x00\r\n\t\u2028 ١٢٣ ½ 日本語").via("joined signs, controls and other digits")
def test_any_text_comes_back_exactly_and_is_never_control(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.decode(ids, special=True) == text
    assert not TOKENIZER.control_ids.intersection(ids)


@settings(max_examples=50, deadline=None)
@given(st.lists(TRICKY, max_size=4))
def test_a_batch_is_encoded_as_its_texts_are(texts: list[str]) -> None:
    assert TOKENIZER.encode_batch(texts) == [TOKENIZER.encode(text) for text in texts]


@given(TRICKY, TRICKY)
@settings(max_examples=100, deadline=None)
def test_no_message_can_end_its_turn_or_open_a_thought(question: str, answer: str) -> None:
    asked = {"role": "user", "content": question}
    messages = [asked, {"role": "assistant", "content": answer}, asked]
    ids = TOKENIZER.chat(messages)
    control = [i for i in ids if i in TOKENIZER.control_ids]
    t = TOKENIZER
    assert control == [t.bos_id, t.user_id, t.assistant_id, t.eos_id, t.user_id, t.assistant_id]
    kept = answer.split(END_THINK)[-1]
    assert t.decode(ids) == question + kept + question


@pytest.mark.parametrize("token", SPECIAL)
def test_spelled_control_tokens_are_text(token: str) -> None:
    ids = TOKENIZER.encode(f"a {token}{token} b")
    assert not TOKENIZER.control_ids.intersection(ids)
    assert TOKENIZER.decode(ids) == f"a {token}{token} b"


def test_lone_surrogates_are_a_users_mistake() -> None:
    """A terminal hands them over for bytes that are no UTF-8."""
    with pytest.raises(UserError, match="Unicode"):
        TOKENIZER.encode("caf\udce9")


@pytest.mark.parametrize("space", ["", " "])
def test_whole_numbers_to_99_are_one_token(space: str) -> None:
    singles = [TOKENIZER.encode(f"{space}{n}") for n in range(100)]
    assert all(len(ids) == 1 for ids in singles)
    assert len({ids[0] for ids in singles}) == 100
    sentence = TOKENIZER.encode(f"x{space or '-'}42{space or '-'}7.")
    assert singles[42][0] in sentence and singles[7][0] in sentence


def test_letters_are_one_token_and_unknown_words_their_letters() -> None:
    for letter in "abcdefghijklmnopqrstuvwxyz":
        assert len(TOKENIZER.encode(letter)) == len(TOKENIZER.encode(" " + letter)) == 1
    assert TOKENIZER.encode("strawberry") == [TOKENIZER.encode(c)[0] for c in "strawberry"]


def test_thought_and_answer_survive_the_trip_through_ids() -> None:
    t = TOKENIZER
    ids = [t.think_id, *t.encode(" 1 1 2"), t.end_think_id, *t.encode(" 3"), t.eos_id]
    parsed = parse_response(t.decode(ids[:-1], special=True))
    assert (parsed.thought, parsed.answer, parsed.closed) == ("1 1 2", "3", True)
    assert t.decode(ids) == " 1 1 2 3"


def test_thinking_opens_the_thought() -> None:
    messages = [{"role": "user", "content": "What is 3 + 4?"}]
    plain = TOKENIZER.chat(messages)
    assert TOKENIZER.chat(messages, thinking=False) == plain
    assert TOKENIZER.chat(messages, thinking=True) == [*plain, TOKENIZER.think_id]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save(path)
    return path


@pytest.fixture(scope="module")
def theirs(folder: Path) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_a_saved_tokenizer_is_the_same(folder: Path) -> None:
    loaded = Tokenizer.load(folder)
    assert loaded.inner.get_vocab() == TOKENIZER.inner.get_vocab()
    text = f"How many r in strawberry? {THINK} 17 + 4"
    assert loaded.encode(text) == TOKENIZER.encode(text)


def test_transformers_gives_the_same_ids(theirs: transformers.PreTrainedTokenizerBase) -> None:
    @settings(max_examples=150, deadline=None)
    @given(ORDINARY)
    def same(text: str) -> None:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids == TOKENIZER.encode(text)
        assert theirs.decode(ids) == text

    same()
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.pad_id,
    )  # fmt: skip
    assert len(theirs) == TOKENIZER.size
    assert theirs("a")["input_ids"] == TOKENIZER.encode("a")  # nothing is added unasked


def test_the_chat_template_of_transformers_gives_the_same_prompt(theirs: transformers.PreTrainedTokenizerBase) -> None:
    content = ORDINARY

    @settings(max_examples=150, deadline=None)
    @given(st.none() | content, st.lists(st.tuples(content, st.none() | content, content), max_size=3), content)
    def same(system: str | None, turns: list[tuple[str, str | None, str]], question: str) -> None:
        messages = [{"role": "system", "content": system}] if system is not None else []
        for asked, thought, answered in turns:
            opening = f"{THINK}{thought}{END_THINK}" if thought is not None else ""
            messages += [
                {"role": "user", "content": asked},
                {"role": "assistant", "content": opening + answered},
            ]
        messages.append({"role": "user", "content": question})
        ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ids == TOKENIZER.chat(messages)

    same()


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tokenizer.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": 3}', "\ud800 \xff"])
def test_a_broken_tokenizer_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(
        text.encode("utf-16", "surrogatepass") if "\ud800" in text else text.encode()
    )
    with pytest.raises(UserError, match="tokenizer.json") as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_a_strangers_tokenizer_lacks_is_named(folder: Path, tmp_path: Path) -> None:
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] != THINK]
    data["model"]["vocab"]["other"] = data["model"]["vocab"].pop(THINK)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    loaded = Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match=THINK):
        print(loaded.think_id)


# ------------------------------------------------------------------------------------- long texts


@settings(max_examples=200, deadline=None)
@given(st.one_of(ANY_TEXT, TRICKY))
def test_a_text_is_never_called_longer_than_it_is(text: str) -> None:
    assert TOKENIZER.encode(text, most=len(TOKENIZER.encode(text))) == TOKENIZER.encode(text)
    assert TOKENIZER._least(text) <= len(TOKENIZER.encode(text))


@pytest.mark.parametrize("family", FAMILIES)
def test_size_alone_tells_of_a_text_that_is_far_too_long(tmp_path: Path, family: str) -> None:
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path, family))
    for text in ("hello world " * 9, "\u1112\u1161\u11ab" * 9, " " * 99, "\n \n" * 9, "<think>" * 9, "e\u0301" * 99):
        assert tokenizer._least(text) <= len(tokenizer.encode(text))
    with pytest.raises(TooLong, match="at most 4 are read"):
        tokenizer.encode("hello world " * 5000, most=4)
    with pytest.raises(TooLong, match="at most 40 are read"):
        tokenizer.chat([{"role": "user", "content": "hello " * 60}], most=40)


def test_what_is_certainly_too_long_is_not_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, encoded = Tokenizer.from_words([" word"]), []
    inner = tokenizer.inner

    class Watched:
        def __getattr__(self, name: str) -> object:
            encoded.append(name) if name.startswith("encode") else None
            return getattr(inner, name)

    monkeypatch.setattr(tokenizer, "inner", Watched())
    with pytest.raises(TooLong, match="at least"):
        tokenizer.encode(" word" * 100_000, most=1000)
    assert not encoded
    with pytest.raises(TooLong, match="1001 tokens"):
        tokenizer.encode(" word" * 1001, most=1000)
    assert encoded


@pytest.mark.parametrize("text", ["word <think>\n", "\x00é 中🦑", THINK])
def test_a_long_text_is_encoded_as_a_short_one_is(text: str) -> None:
    assert TOKENIZER.encode(text * 3000) == TOKENIZER.encode(text) * 3000


def test_others_run_while_a_long_text_is_encoded() -> None:
    text, beats, done = "strawberry 12 many\n" * 30_000, [0], threading.Event()

    def beat() -> None:
        while not done.wait(0.001):
            beats[0] += 1

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        before = beats[0]
        TOKENIZER.encode(text)
        during = beats[0] - before
    finally:
        done.set()
        thread.join()
    assert during >= 5


# What a tokenizer.json of other hands can hold


def written(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A family's tokenizer with something changed in its file."""
    path = write_tokenizer(folder, "qwen3") / "tokenizer.json"
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))
    return folder


BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "prefix": lambda s: s["model"].update(continuing_subword_prefix="##"),
    "long prefix": lambda s: s["model"].update(continuing_subword_prefix="x" * 500),
    "prefix and merges as text": lambda s: s["model"].update(
        continuing_subword_prefix="##", merges=[" ".join(pair) for pair in s["model"]["merges"]]
    ),
    "merge of three": lambda s: s["model"].update(merges=["a b c"], continuing_subword_prefix="##"),
    "merges of numbers": lambda s: s["model"].update(merges=[1, 2], continuing_subword_prefix="##"),
    "unknown merge": lambda s: s["model"].update(merges=[["zzz", "yyy"]]),
    "negative id": lambda s: s["model"]["vocab"].update(a=-1),
    "expression": lambda s: s.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}}),
    "no step": lambda s: s.update(pre_tokenizer={"type": "FixedLength", "length": 0}),
    "replaced nothing": lambda s: s.update(normalizer={"type": "Replace", "pattern": {"String": ""}, "content": "x"}),
    "charsmap": lambda s: s.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "strip": lambda s: s.update(decoder={"type": "Strip", "content": "t", "start": 2, "stop": 2}),
    "no unknown": lambda s: s.update(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "?"}, added_tokens=[]),
    "empty unigram": lambda s: s.update(model={"type": "Unigram", "vocab": [], "unk_id": None}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_the_library_fails_on_is_one_line(name: str, tmp_path: Path) -> None:
    """It panics on most of these, which is no `Exception`: some while it reads them, others at the first text."""
    folder = written(tmp_path, BROKEN[name])
    with pytest.raises(UserError) as error:
        t = Tokenizer.load(folder)
        t.decode(t.encode("t"))
        [t.token_bytes(i) for i in range(t.size)]
    assert "\n" not in str(error.value) and len(str(error.value)) < 500 and error.value.remedy


def test_a_prefix_that_goes_with_its_merges_is_read(tmp_path: Path) -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "##b": 1, "ab": 2}, "merges": [["a", "##b"]], "unk_token": None,
             "continuing_subword_prefix": "##"}  # fmt: skip
    t = Tokenizer.load(written(tmp_path, lambda s: s.update(model=model, pre_tokenizer=None)))
    assert t.encode("ab") == [2]


@pytest.mark.parametrize(
    "change",
    [
        {"truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}},
        {"truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 8}},
        {"padding": {"strategy": {"Fixed": 500}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                     "pad_type_id": 0, "pad_token": "a"}},
    ],
)  # fmt: skip
def test_a_text_is_read_whole_whatever_a_training_cut_it_to(change: dict[str, Any], tmp_path: Path) -> None:
    text = "The capital of France is Paris, a city."
    plain = Tokenizer.load(write_tokenizer(tmp_path / "plain", "qwen3"))
    cut = Tokenizer.load(written(tmp_path / "cut", lambda s: s.update(change)))
    assert cut.encode(text) == plain.encode(text) and cut.encode_batch([text]) == [plain.encode(text)]
    if "truncation" not in change or change["truncation"]["stride"] == 0:  # which transformers does not open
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "cut")
        assert cut.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]


def test_a_text_is_always_read_alike(tmp_path: Path) -> None:
    text = "The capital of France is Paris, a city."
    plain = Tokenizer.load(write_tokenizer(tmp_path / "plain", "qwen3"))
    random = Tokenizer.load(written(tmp_path / "random", lambda s: s["model"].update(dropout=0.9)))
    for i in range(9):
        assert random.encode(f"{text}{i}") == plain.encode(f"{text}{i}")
