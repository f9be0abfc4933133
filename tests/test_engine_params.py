"""Every sampling setting against a plain loop that follows its definition, bad input, and streams for many callers."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hadal.engine import LLM, AsyncEngine, Busy, Engine, EngineConfig, SamplingParams, TooLong
from hadal.engine.sampling import inverse_draw, keep_min_p, keep_top_k, keep_top_p
from hadal.engine.speculation import look_up
from hadal.errors import UserError
from hadal.models.build import build
from hadal.models.decoder import Decoder
from hadal.models.dense.config import DenseConfig
from hadal.tasks import load_tasks
from hadal.tasks.words import build_tokenizer

TOKENIZER = build_tokenizer(list(load_tasks(["sums"]).values()))
VOCABULARY = -(-TOKENIZER.size // 64) * 64
CONTEXT = 256
NEVER = [*TOKENIZER.forbidden_ids, *range(TOKENIZER.size, VOCABULARY)]


def make(seed: int = 2) -> Decoder:
    model = build(DenseConfig(VOCABULARY, 64, 2, intermediate_size=128, head_dim=16, max_position_embeddings=CONTEXT))
    model.initialise(seed)
    with torch.no_grad():  # sharper than at random, so that filters have something to cut
        model.norm.weight.mul_(3)
    return model.eval()


LLM_ = LLM(make(), TOKENIZER)
PROMPT = [20, 31, 44, 31, 52]


def loop(edit: Callable[[Tensor, list[int]], Tensor], steps: int, prompt: list[int] = PROMPT) -> list[int]:
    """Greedy tokens of the model's logits after `edit(logits, generated)`, nothing cached."""
    made: list[int] = []
    for _ in range(steps):
        with torch.no_grad():
            logits = LLM_.model.logits(LLM_.model(torch.tensor([prompt + made]))[0, -1])
        logits[NEVER] = float("-inf")
        made.append(int(edit(logits, made).argmax()))
        if made[-1] == TOKENIZER.eos_id:
            break
    return made


def ids(params: SamplingParams, prompt: list[int] = PROMPT) -> list[int]:
    (output,) = LLM_.generate([prompt], params)
    return output.outputs[0].token_ids


GREEDY = SamplingParams(temperature=0, max_tokens=24)


@pytest.mark.parametrize(
    ("presence", "frequency", "repetition"), [(1.5, 0, 1), (0, 0.7, 1), (0, 0, 1.8), (-1, 0.5, 1.3)]
)
def test_penalties_do_what_their_definitions_say(presence: float, frequency: float, repetition: float) -> None:
    def edit(logits: Tensor, made: list[int]) -> Tensor:
        counts = Counter(made)
        for token in set(made) | set(PROMPT):
            value = float(logits[token])
            logits[token] = value / repetition if value > 0 else value * repetition
        for token, count in counts.items():
            logits[token] -= presence + frequency * count
        return logits

    params = replace(GREEDY, presence_penalty=presence, frequency_penalty=frequency, repetition_penalty=repetition)
    assert ids(params) == loop(edit, 24) != loop(lambda logits, made: logits, 24)


def test_a_bias_is_added_to_its_tokens() -> None:
    plain = loop(lambda logits, made: logits, 24)
    banned = {token: -100.0 for token in plain[:3]}

    def edit(logits: Tensor, made: list[int]) -> Tensor:
        for token, value in banned.items():
            logits[token] += value
        return logits

    assert ids(replace(GREEDY, logit_bias=banned)) == loop(edit, 24)
    assert not set(banned) & set(ids(replace(GREEDY, logit_bias=banned)))


def test_constrained_output_stays_inside_its_mask() -> None:
    seen: list[list[int]] = []

    def allowed(made: Any) -> Tensor:
        seen.append(list(made))
        mask = torch.zeros(VOCABULARY, dtype=torch.bool)
        mask[30 + len(made) % 3] = True
        mask[33] = True
        return mask

    (output,) = LLM_.generate([PROMPT], SamplingParams(allowed=allowed, max_tokens=12, seed=0))
    made = output.outputs[0].token_ids
    assert all(token in (30 + place % 3, 33) for place, token in enumerate(made))
    assert seen == [made[:place] for place in range(12)]


def test_a_mask_that_leaves_no_token_ends_that_request_alone() -> None:
    def allowed(made: Any) -> Tensor:
        return torch.full((VOCABULARY,), len(made) < 3)

    params = SamplingParams(max_tokens=6, seed=0, ignore_eos=True, logprobs=0)
    stuck, fine = LLM_.generate([PROMPT, PROMPT], [replace(params, allowed=allowed), params])
    assert stuck.outputs[0].finish_reason == "error" and "mask" in stuck.outputs[0].error
    assert fine.outputs == LLM_.generate([PROMPT], params)[0].outputs


def test_stop_texts_and_stop_tokens_end_a_response() -> None:
    plain = ids(replace(GREEDY, ignore_eos=True, max_tokens=40))
    text = TOKENIZER.decode(plain, special=True)
    stop = TOKENIZER.decode(plain[7:9], special=True)
    (output,) = LLM_.generate([PROMPT], replace(GREEDY, max_tokens=40, ignore_eos=True, stop=["never there", stop]))
    sample = output.outputs[0]
    assert sample.finish_reason == "stop"
    assert sample.text == text[: text.index(stop)]
    assert sample.token_ids == plain[: len(sample.token_ids)]
    token = plain[5]
    stopped = ids(replace(GREEDY, max_tokens=40, ignore_eos=True, stop_token_ids=[token]))
    assert stopped == plain[: plain.index(token) + 1]


def test_ignoring_the_end_goes_on_to_the_limit_or_the_context() -> None:
    biased = replace(GREEDY, logit_bias={TOKENIZER.eos_id: 100.0})
    assert ids(biased) == [TOKENIZER.eos_id]
    assert ids(replace(biased, ignore_eos=True, max_tokens=5)) == [TOKENIZER.eos_id] * 5
    assert len(ids(replace(biased, ignore_eos=True, max_tokens=None))) == CONTEXT - len(PROMPT)


def test_the_likeliest_tokens_and_their_log_probabilities() -> None:
    (output,) = LLM_.generate([PROMPT], SamplingParams(temperature=0.7, max_tokens=6, seed=1, logprobs=4))
    sample = output.outputs[0]
    for place, (token, logprob, top) in enumerate(
        zip(sample.token_ids, sample.logprobs, sample.top_logprobs, strict=True)
    ):
        with torch.no_grad():
            logits = LLM_.model.logits(LLM_.model(torch.tensor([PROMPT + sample.token_ids[:place]]))[0, -1]).double()
        logits[NEVER] = float("-inf")
        exact = torch.log_softmax(logits, -1)  # the model's own: at temperature 1
        assert logprob == pytest.approx(float(exact[token]), abs=1e-5)
        value, index = exact.topk(4)
        assert list(top) == index.tolist() and list(top.values()) == pytest.approx(value.tolist(), abs=1e-5)
    assert LLM_.generate([PROMPT], SamplingParams(max_tokens=3))[0].outputs[0].logprobs == []


# ------------------------------------------------------------------------------ thinking


def test_a_thought_is_closed_when_its_budget_is_used_up() -> None:
    opened = [*PROMPT, TOKENIZER.think_id]
    never = {TOKENIZER.end_think_id: -100.0, TOKENIZER.eos_id: -100.0}
    params = replace(GREEDY, max_tokens=20, logit_bias=never, thinking=True)
    free = ids(params)
    assert TOKENIZER.end_think_id not in free
    for budget in (0, 1, 7):
        (output,) = LLM_.generate([PROMPT], replace(params, thinking_budget=budget))
        sample = output.outputs[0]
        assert output.prompt_token_ids == opened
        assert sample.token_ids[:budget] == free[:budget] and sample.token_ids[budget] == TOKENIZER.end_think_id
        assert sample.forced == [budget]
        assert TOKENIZER.end_think_id not in sample.token_ids[budget + 1 :]  # outside of a thought there is no budget
    biased = replace(params, logit_bias={TOKENIZER.end_think_id: 100.0}, thinking_budget=3, max_tokens=1)
    assert LLM_.generate([PROMPT], biased)[0].outputs[0].forced == []  # it closed the thought by itself


def test_answer_now_closes_the_thoughts_of_a_running_request() -> None:
    engine = Engine(LLM_.model, TOKENIZER)
    never = {TOKENIZER.end_think_id: -100.0, TOKENIZER.eos_id: -100.0}
    params = SamplingParams(n=3, max_tokens=30, thinking=True, logit_bias=never)
    hurried, other = engine.add(PROMPT, params, 1), engine.add(PROMPT[1:], params, 2)
    for _ in range(6):
        engine.step()
    engine.answer_now(hurried)
    while engine.has_work():
        engine.step()
    for sample in hurried.output().outputs:
        assert 0 < sample.token_ids.index(TOKENIZER.end_think_id) < 8
        assert sample.forced == [sample.token_ids.index(TOKENIZER.end_think_id)]
    for sample in other.output().outputs:
        assert TOKENIZER.end_think_id not in sample.token_ids


# ------------------------------------------------------------------------------ filters, by brute force

ROWS = st.lists(st.floats(-8, 8, width=16), min_size=2, max_size=40)


@settings(deadline=None)
@given(logits=ROWS, top_k=st.integers(0, 45), top_p=st.floats(0.01, 1), min_p=st.floats(0, 1))
def test_filters_keep_what_their_definitions_say(logits: list[float], top_k: int, top_p: float, min_p: float) -> None:
    p = torch.softmax(torch.tensor([logits, list(reversed(logits))]), -1)
    for row in p:
        kept = keep_top_k(row[None], torch.tensor([top_k]))[0]
        order = sorted(range(len(row)), key=lambda i: (-float(row[i]), i))
        assert kept.nonzero()[:, 0].tolist() == sorted(order[: top_k or None])
        kept = keep_top_p(row[None], torch.tensor([top_p]))[0]
        wanted = float(torch.tensor(top_p).double() * row.double().sum())
        sums = row[order].double().cumsum(0).tolist()
        count = next((k for k, mass in enumerate(sums, 1) if mass >= wanted), len(row))
        assert kept.nonzero()[:, 0].tolist() == sorted(order[:count])
        kept = keep_min_p(row[None], torch.tensor([min_p]))[0]
        assert kept.nonzero()[:, 0].tolist() == (row >= torch.tensor(min_p) * row.max()).nonzero()[:, 0].tolist()


def test_a_large_vocabulary_is_filtered_like_a_small_one() -> None:
    """Where only the likeliest tokens are looked at first, and where they do not suffice."""
    generator = torch.Generator().manual_seed(0)
    for sharpness in (12.0, 3.0, 0.1):
        p = torch.softmax(torch.randn(3, 20_000, generator=generator) * sharpness, -1)
        for top_p in (0.1, 0.95, 0.9999):
            kept = keep_top_p(p, torch.full((3,), top_p))
            for row, got in zip(p, kept, strict=True):
                value, order = row.sort(descending=True, stable=True)
                count = int((value.double().cumsum(0) < torch.tensor(top_p).double() * row.double().sum()).sum()) + 1
                assert abs(int((got > 0).sum()) - count) <= 1  # the border is a sum of many roundings
                assert torch.equal(got[order[: count - 1]], row[order[: count - 1]])
        for top_k in (1, 40, 700):
            kept = keep_top_k(p, torch.full((3,), top_k))
            assert ((kept > 0).sum(-1) == top_k).all() and torch.equal(kept.amax(-1), p.amax(-1))


def test_a_row_that_leaves_no_token_is_filtered_beside_others() -> None:
    p = torch.softmax(torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0)), -1)
    both = keep_top_p(torch.stack([p[0], torch.full((20_000,), torch.nan)]), torch.tensor([0.9, 0.9]))
    assert torch.equal(both[0], keep_top_p(p[:1], torch.tensor([0.9]))[0]) and int((both[0] > 0).sum()) > 1


@settings(deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.0, 1e-6, 0.25, 1.0, 3.0]), min_size=1, max_size=70),
    u=st.floats(0, 1, exclude_max=True),
)
def test_the_inverse_distribution_function_is_a_cumulative_sum(weights: list[float], u: float) -> None:
    if not any(weights):
        weights[0] = 1.0
    token = int(inverse_draw(torch.tensor([weights]), torch.tensor([u], dtype=torch.float64)))
    assert weights[token] > 0
    exact = torch.tensor(weights).double()
    below, target = float(exact[:token].sum()), u * float(exact.sum())
    assert below - 1e-6 <= target <= below + float(exact[token]) + 1e-6


@given(tokens=st.lists(st.integers(0, 3), max_size=40), count=st.integers(1, 5))
def test_looking_up_finds_the_latest_longest_match(tokens: list[int], count: int) -> None:
    expected: list[int] = []
    for size in range(min(4, len(tokens) - 1), 1, -1):
        begins = [b for b in range(len(tokens) - size) if tokens[b : b + size] == tokens[len(tokens) - size :]]
        if begins:
            expected = tokens[begins[-1] + size :][:count]
            break
    assert look_up(tokens, count) == expected


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("prompt", "params", "word"),
    [
        ([], {}, "empty"),
        ([5, VOCABULARY], {}, "outside"),
        ([-1], {}, "outside"),
        ([5] * 1_000_000, {}, "1000000"),
        (PROMPT, {"logit_bias": {VOCABULARY: 1.0}}, "logit_bias"),
        (PROMPT, {"stop_token_ids": [-3]}, "stop_token_ids"),
    ],
)
def test_a_bad_request_fails_alone(prompt: list[int], params: dict[str, Any], word: str) -> None:
    good = replace(GREEDY, max_tokens=4)
    outputs = LLM_.generate([PROMPT, prompt, PROMPT[1:]], [good, replace(good, **params), good])
    assert word in outputs[1].error and not outputs[1].outputs
    assert not outputs[0].error and outputs[0].outputs[0].token_ids == ids(good)
    assert len(outputs[2].outputs[0].token_ids) == 4
    with pytest.raises(UserError, match=word):
        LLM_.generate([prompt], replace(good, **params))


@pytest.mark.parametrize(
    ("settings_", "word"),
    [
        ({"n": 10_000}, "n is"), ({"n": 0}, "n is"), ({"top_k": -1}, "top_k"), ({"min_p": 2.0}, "min_p"),
        ({"stop": "x" * 10_000}, "stop"), ({"stop": ["a"] * 17}, "stop"), ({"stop": [""]}, "stop"),
        ({"thinking": False, "thinking_budget": 5}, "thinking"), ({"max_tokens": 2.5}, "max_tokens"),
        ({"temperature": float("nan")}, "temperature"), ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"logprobs": 1000}, "logprobs"), ({"logprobs_of": "mine"}, "logprobs_of"), ({"best_of": 3}, "best_of"),
        ({"tempreature": 1.0}, "temperature"), ({"seed": True}, "seed"), ({"temperature": 1e-9}, "temperature"),
        ({"top_p": 0}, "top_p"), ({"top_p": "high"}, "top_p"), ({"stop": 5}, "stop"), ({"stop": ["\ud800"]}, "stop"),
        ({"logit_bias": {5: float("nan")}}, "logit_bias"), ({"logit_bias": {5: 1e308}}, "logit_bias"),
        ({"logit_bias": {5: "high"}}, "logit_bias"), ({"logit_bias": [5]}, "logit_bias"), ({"top_p": 1.5}, "top_p"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_honoured_are_refused_by_name(settings_: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        SamplingParams.of(settings_)


ODD = st.one_of(
    st.floats(), st.integers(), st.sampled_from([1 << 80, -(1 << 80), 5e-324, 1e-6, 1e308]), st.text(max_size=3),
    st.sampled_from(["\ud800", "a" * 2000]), st.booleans(), st.none(),
    st.lists(st.integers(-2, VOCABULARY), max_size=3),
)  # fmt: skip
SETTINGS = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "thinking_budget", "stop", "stop_token_ids", "seed",
            "presence_penalty", "frequency_penalty", "repetition_penalty", "n", "logprobs", "logit_bias")  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(
    odd=st.dictionaries(st.sampled_from(SETTINGS), ODD, max_size=3),
    bias=st.dictionaries(st.integers(0, VOCABULARY - 1), ODD, max_size=2),
    thinking=st.sampled_from([None, True, False]),
)
def test_no_setting_harms_the_request_beside_it(
    odd: dict[str, Any], bias: dict[int, Any], thinking: bool | None
) -> None:
    params = {"max_tokens": 3, "logit_bias": bias, "thinking": thinking} | odd
    beside = SamplingParams(max_tokens=3, seed=1)
    with contextlib.suppress(UserError):
        wanted = SamplingParams.of(params)
        wanted = replace(wanted, max_tokens=min(wanted.max_tokens or 3, 3), n=min(wanted.n, 3))
        one, other = LLM_.generate([PROMPT, PROMPT], [wanted, beside])
        assert one.error or all(sample.token_ids for sample in one.outputs)
        assert other.outputs[0].token_ids == ids(beside)


def test_a_model_that_gives_no_numbers_ends_that_request_alone() -> None:
    model = make(3)
    poisoned = 77
    with torch.no_grad():
        model.embed.weight[poisoned] = float("nan")
    model.config = replace(model.config, tie_word_embeddings=False)
    model.head = torch.nn.Linear(64, VOCABULARY, bias=False)
    llm = LLM(model, TOKENIZER)
    params = replace(GREEDY, max_tokens=6, ignore_eos=True)
    broken, fine = llm.generate([[20, poisoned], PROMPT], params)
    assert broken.outputs[0].finish_reason == "error" and "damaged" in broken.outputs[0].error
    assert fine.outputs[0].finish_reason == "length" and len(fine.outputs[0].token_ids) == 6


def test_logits_that_leave_float32_when_divided_are_no_numbers_either() -> None:
    model = make(3)
    model.config = replace(model.config, tie_word_embeddings=False)
    model.head = torch.nn.Linear(64, VOCABULARY, bias=False)
    with torch.no_grad():
        model.head.weight.mul_(1e36)
    (output,) = LLM(model, TOKENIZER).generate(PROMPT, SamplingParams(max_tokens=3, temperature=1e-6))
    assert output.outputs[0].finish_reason == "error" and "damaged" in output.outputs[0].error


def test_a_prompt_that_memory_cannot_hold_is_refused_and_not_waited_for() -> None:
    engine = Engine(LLM_.model, TOKENIZER, EngineConfig(cache_bytes=200 * engine_token_bytes()))
    assert engine.longest == engine.kv.longest() == 191
    assert f"191 tokens, fewer than the {CONTEXT}" in engine.budget()
    with pytest.raises(TooLong, match="The prompt has 195 tokens: the cache") as refused:
        engine.add([20] * 195, replace(GREEDY, max_tokens=None), 0)
    assert refused.value.field == "prompt"
    with pytest.raises(TooLong, match="max_tokens is 140: the cache") as refused:
        engine.add([20] * 60, replace(GREEDY, max_tokens=140), 0)
    assert refused.value.field == "max_tokens" and not engine.has_work()


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("reserve", [8, 300])
def test_what_fits_alone_is_given_in_full(n: int, reserve: int) -> None:
    """Two requests of all that the cache holds for one, and a short one, wait for each other and lose no token."""
    params = SamplingParams(max_tokens=None, ignore_eos=True, seed=1, n=n)
    config = EngineConfig(cache_bytes=200 * engine_token_bytes(), reserve=reserve)
    engine = Engine(LLM_.model, TOKENIZER, config)
    holds = engine.longest
    requests = [engine.add([20 + i] * 60, replace(params, max_tokens=most), 1) for i, most in enumerate((None, 131))
                if most is None or n == 1]  # fmt: skip
    requests.append(engine.add([30, 31], replace(params, max_tokens=9), 1))
    while engine.has_work():
        engine.step()
        assert engine.kv.used() <= engine.kv.budget
    assert [len(sample.token_ids) for sample in requests[0].output().outputs] == [holds - 60] * n
    assert [len(sample.token_ids) for sample in requests[-1].output().outputs] == [9] * n
    whole = LLM(LLM_.model, TOKENIZER).generate([r.prompt for r in requests], [r.params for r in requests])
    for request, output in zip(requests, whole, strict=True):
        for sample, expected in zip(request.output().outputs, output.outputs, strict=True):
            assert sample.token_ids == expected.token_ids[: len(sample.token_ids)]


def engine_token_bytes() -> int:
    return Engine(LLM_.model, TOKENIZER).token_bytes


def test_a_checkpoints_own_settings_are_the_defaults(tmp_path: Any) -> None:
    from hadal.engine.llm import generation_defaults

    assert generation_defaults(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.6, "top_p": 0.95, "x": 1}')
    assert generation_defaults(tmp_path) == {"temperature": 0.6, "top_p": 0.95}
    (tmp_path / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.6}')
    assert generation_defaults(tmp_path) == {"temperature": 0.0}


def test_prompts_come_as_text_ids_or_messages() -> None:
    params = replace(GREEDY, max_tokens=5)
    text = "What is 3 + 4?"
    as_text, as_mapping, as_ids = LLM_.generate(
        [text, {"prompt": text}, {"prompt_token_ids": TOKENIZER.encode(text)}], params
    )
    assert as_text == as_mapping == as_ids == LLM_.generate(text, params)[0]
    messages = [{"role": "user", "content": text}]
    (chat,) = LLM_.chat(messages, params)
    assert chat.prompt_token_ids == TOKENIZER.chat(messages)
    assert LLM_.chat([messages, messages], params) == [chat, chat]


# ------------------------------------------------------------------------------ many callers


def test_streams_give_what_generating_gives_and_leavers_free_what_they_held() -> None:
    engine = Engine(LLM_.model, TOKENIZER, EngineConfig(rows=6))
    params = SamplingParams(max_tokens=30, seed=4, n=2, ignore_eos=True)

    async def read(prompt: list[int], leave_after: int | None) -> list[list[int]]:
        got: list[list[int]] = [[], []]
        stream = asynchronous.generate(prompt, params)
        count = 0
        async for piece in stream:
            got[piece.index] += piece.token_ids
            count += 1
            if count == leave_after:
                await stream.aclose()
                break
        return got

    async def run() -> list[list[list[int]]]:
        prompts = [[20 + i, 30, 40] for i in range(8)]
        return await asyncio.gather(*(read(p, 3 if i % 2 else None) for i, p in enumerate(prompts)))

    with AsyncEngine(engine) as asynchronous:
        results = asyncio.run(asyncio.wait_for(run(), 60))
        expected = LLM(LLM_.model, TOKENIZER).generate([[20 + i, 30, 40] for i in range(8)], params)
        for i, (got, output) in enumerate(zip(results, expected, strict=True)):
            whole = [sample.token_ids for sample in output.outputs]
            if i % 2:
                assert all(w[: len(g)] == g and len(g) < 30 for g, w in zip(got, whole, strict=True))
            else:
                assert got == whole
        for _ in range(200):
            if not engine.has_work():
                break
            asyncio.run(asyncio.sleep(0.02))
        assert not engine.has_work()
    assert len(engine.table.free) == len(engine.table.sequences)


def test_when_too_many_wait_new_ones_are_turned_away_and_a_closed_engine_says_so() -> None:
    engine = Engine(LLM_.model, TOKENIZER, EngineConfig(rows=1))
    params = SamplingParams(max_tokens=200, ignore_eos=True)

    async def run() -> list[Any]:
        async def one() -> int:
            return len([piece async for piece in asynchronous.generate(PROMPT, params)])

        return await asyncio.gather(*(one() for _ in range(12)), return_exceptions=True)

    with AsyncEngine(engine, waiting=2) as asynchronous:
        results = asyncio.run(asyncio.wait_for(run(), 60))
        assert any(isinstance(result, Busy) for result in results)
        assert any(isinstance(result, int) for result in results)

        async def ask(prompt: list[int]) -> None:
            async for _ in asynchronous.generate(prompt, params):
                pass

        with pytest.raises(UserError, match="empty"):
            asyncio.run(ask([]))
    with pytest.raises(UserError, match="closed"):
        asyncio.run(ask(PROMPT))
