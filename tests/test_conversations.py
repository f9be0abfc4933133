"""Conversations as ids: what is learnt of them, in every chat form; bad lines; packed rows against single ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_parity import CONFIGS, fresh
from tokenizer_families import write_tokenizer

from hadal.errors import UserError
from hadal.models.deepseek.network import Deepseek
from hadal.tasks.words import build_tokenizer
from hadal.text.tokenizer import Tokenizer
from hadal.train.conversations import Conversation, Encoder, epoch_batches, packed, read_conversations
from hadal.train.losses import pretraining_loss

FORMS = ["qwen3", "llama3", "llama2", "r1", "v3.1", "own"]
U, A = "user", "assistant"


def tokenizer(form: str, folder: Path) -> Tokenizer:
    return build_tokenizer([]) if form == "own" else Tokenizer.load(write_tokenizer(folder, form))


def turns(*contents: str) -> list[dict[str, Any]]:
    return [{"role": (U, A)[i % 2], "content": text} for i, text in enumerate(contents)]


def learnt(tok: Tokenizer, conversation: Conversation) -> list[str]:
    return [tok.decode(conversation.ids[a:b], special=True) for a, b in conversation.spans]


@pytest.mark.parametrize("form", FORMS)
def test_every_answer_is_learnt_with_its_end_and_nothing_else_is(form: str, tmp_path: Path) -> None:
    tok = tokenizer(form, tmp_path)
    questions = ("What is France?", "And Paris?", "user assistant </s>")
    messages = turns(questions[0], "a country", questions[1], "The capital.", questions[2], "Yes <think> no")
    (conversation,) = Encoder(tok).encode(messages)
    end = tok.decode([tok.eos_id], special=True)
    found = [text.strip() for text in learnt(tok, conversation)]
    space = " " if form == "llama2" else ""  # which its template puts behind an answer
    assert found == [f"a country{space}{end}", f"The capital.{space}{end}", f"Yes <think> no{end}"]
    whole = tok.decode(conversation.ids, special=True)
    assert all(question in whole for question in questions)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_learnt_last_continues_the_prompt_of_inference(form: str, tmp_path: Path) -> None:
    tok = tokenizer(form, tmp_path)
    messages = turns("What is France?", "a country", "And Paris?", "The capital.")
    (conversation,) = Encoder(tok).encode(messages)
    begin = conversation.spans[-1][0]
    opened = tok.in_thought(tok.chat(messages[:3]))  # R1's form: an answer without a thought follows a closed one
    assert conversation.ids[:begin] == tok.chat(messages[:3], thinking=False if opened else None)


@pytest.mark.parametrize("form", ["qwen3", "r1", "v3.1", "own"])
def test_the_last_thought_is_learnt_as_control_tokens_and_earlier_ones_are_gone(form: str, tmp_path: Path) -> None:
    tok = tokenizer(form, tmp_path)
    messages = turns("a", "<think>\nold thought\n</think>\n\nfirst", "b", "<think>\nnew thought\n</think>\n\nsecond")
    (conversation,) = Encoder(tok).encode(messages)
    whole = tok.decode(conversation.ids, special=True)
    assert "old thought" not in whole and "first" in whole
    last = conversation.ids[slice(*conversation.spans[-1])]
    assert last.count(tok.end_think_id) == 1 and conversation.ids.count(tok.think_id) == 1
    thought, answer = last[: last.index(tok.end_think_id)], last[last.index(tok.end_think_id) + 1 :]
    assert tok.decode(thought).strip() == "new thought" and tok.decode(answer).strip() == "second"
    if form == "r1":  # the prompt has opened the thought, and broken the line
        assert whole.count("<think>\nnew thought\n</think>\n\nsecond") == 1


@pytest.mark.parametrize("form", ["qwen3", "r1", "v3.1"])
def test_tool_calls_are_learnt_in_the_forms_own_way(form: str, tmp_path: Path) -> None:
    tok = tokenizer(form, tmp_path)
    arguments: Any = {"city": "Paris"} if form == "qwen3" else '{"city": "Paris"}'
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    asked = {"role": A, "content": "", "tool_calls": [call]}
    told = [{"role": "tool", "content": "no"}, {"role": A, "content": "It is dry."}]
    messages = [{"role": U, "content": "Rain?"}, asked, *told]
    conversations = Encoder(tok).encode(messages)
    found = "".join(text for conversation in conversations for text in learnt(tok, conversation))
    assert "weather" in found and '"Paris"' in found and "It is dry." in found and "Rain?" not in found
    (single,) = Encoder(tok).encode(messages[:2])
    (text,) = learnt(tok, single)
    assert "weather" in text and text.endswith(tok.decode([tok.eos_id], special=True))


def test_a_form_that_rewrites_earlier_turns_gives_one_sequence_for_each_answer(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content if loop.index0 + 3 > messages|length "
        "else '...') + '<|im_end|>' }}{% endfor %}{{ '<|im_start|>assistant\\n' }}"
    )
    tok = Tokenizer.load(write_tokenizer(tmp_path, "qwen3", template))
    messages = turns("one", "two", "three", "four", "five", "six")
    found = [learnt(tok, conversation) for conversation in Encoder(tok).encode(messages)]
    assert found == [["two<|im_end|>"], ["four<|im_end|>"], ["six<|im_end|>"]]


# Files


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


GOOD = {"messages": turns("a", "b")}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{nonsense", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ("[1]", "line 2 has no messages"),
        ({"text": "a"}, "line 2 has no messages"),
        ({"messages": []}, "line 2 has no messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "line 2, message 1 has the role 'robot'"),
        ({"messages": ["x"]}, "line 2, message 1 has the role 'x'"),
        ({"messages": turns("a", "  ")}, "line 2, message 2 is an empty answer"),
        ({"messages": turns("a", "<think>x</think> ")}, "line 2, message 2 is an empty answer"),
        ({"messages": turns("a")}, "line 2 has no answer of the assistant"),
        ({"messages": [{"role": U, "content": 3}]}, "message 1 has content that is not text"),
        ({"messages": [{"role": U, "content": [{"type": "image_url"}]}]}, "message 1 has content that is not text"),
        ({"messages": [{"role": A, "tool_calls": 5}]}, "tool_calls without a function's name"),
        ({"messages": [{"role": A, "tool_calls": [{}]}]}, "tool_calls without a function's name"),
        ({"messages": turns("a", "b"), "tools": 5}, "tools that are not a list"),
        ({"messages": turns("a", "\ud800")}, r"line 2 holds half a character"),
    ],
)
def test_a_bad_line_is_named(line: Any, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", GOOD, line)
    with pytest.raises(UserError, match=said) as error:
        read_conversations(path, build_tokenizer([]), 64)
    assert "\n" not in str(error.value) and str(path) in str(error.value) and error.value.remedy


def test_long_conversations_are_left_out_and_counted(tmp_path: Path) -> None:
    long = {"messages": turns("a", "b " * 100)}
    path = write(tmp_path / "data.jsonl", GOOD, long, "", {"messages": [*turns("a", "b"), {"role": U, "content": "c"}]})
    kept, skipped = read_conversations(path, build_tokenizer([]), 64)
    assert len(kept) == 2 and skipped == 1 and kept[0] == kept[1]
    with pytest.raises(UserError, match="all 1 are longer than the context of 64"):
        read_conversations(write(path, long), build_tokenizer([]), 64)
    with pytest.raises(UserError, match="holds no conversation"):
        read_conversations(write(path), build_tokenizer([]), 64)
    with pytest.raises(UserError, match="no such file"):
        read_conversations(tmp_path / "absent", build_tokenizer([]), 64)


# Batches


def some(count: int, seed: int = 0, longest: int = 20) -> list[Conversation]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        size = int(torch.randint(4, longest, (), generator=generator))
        ids = torch.randint(1, 97, (size,), generator=generator).tolist()
        found.append(Conversation(ids, [(1, 2), (3, size)] if size > 6 else [(2, size)]))
    return found


def test_an_epoch_takes_every_conversation_once_in_an_order_of_the_seed() -> None:
    lengths = [len(c.ids) for c in some(50)]
    plan = epoch_batches(lengths, 60, 1, 0)
    assert sorted(i for batch in plan for i in batch) == list(range(50))
    assert all(sum(lengths[i] for i in batch) <= 60 for batch in plan)
    assert plan == epoch_batches(lengths, 60, 1, 0)
    assert plan != epoch_batches(lengths, 60, 1, 1) and plan != epoch_batches(lengths, 60, 2, 0)
    assert epoch_batches([100, 5], 60, 0, 0) in ([[0], [1]], [[1], [0]])


def test_passes_hold_everything_once_and_keep_to_their_size() -> None:
    conversations = some(40)
    passes = packed(conversations, 64, 0)
    assert all(batch.ids.numel() <= 64 for batch in passes)
    found = []
    for batch in passes:
        assert batch.documents is not None
        for row, documents in zip(batch.ids, batch.documents, strict=True):
            found += [row[documents == d].tolist() for d in documents.unique() if d >= 0]
    assert sorted(found) == sorted(c.ids for c in conversations)
    assert sum(float(b.weight.sum()) for b in passes) == sum(c.learnt for c in conversations)
    assert sum(b.ids.numel() for b in passes) < 1.2 * sum(len(c.ids) for c in conversations)


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama3", "v2-lite", "v3"])
def test_packed_rows_give_the_loss_and_gradients_of_single_ones(name: str) -> None:
    model = fresh(CONFIGS[name]).double()
    if isinstance(model, Deepseek):
        assert not model.training  # no balance loss
    conversations = some(9)
    never = torch.tensor([0])
    total = sum(c.learnt for c in conversations)
    loss = torch.zeros((), dtype=torch.float64)
    for conversation in conversations:
        ids = torch.tensor([conversation.ids])
        logits = model.logits(model(ids[:, :-1]))[0].index_fill(1, never, float("-inf"))
        logprobs = logits.log_softmax(-1)
        for begin, end in conversation.spans:
            loss = loss - sum(logprobs[t - 1, ids[0, t]] for t in range(begin, end)) / total
    loss.backward()
    expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    passes = packed(conversations, 60, 0)
    assert any(int(batch.documents.max()) > 0 for batch in passes if batch.documents is not None)
    found = 0.0
    for batch in passes:
        part = pretraining_loss(model, batch, never)[0]
        part.backward()
        found += float(part.detach())
    assert abs(found - float(loss.detach())) < 1e-5
    for n, p in model.named_parameters():
        if n in expected:
            torch.testing.assert_close(p.grad, expected[n], rtol=1e-5, atol=1e-7)
