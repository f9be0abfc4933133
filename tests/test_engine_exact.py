"""What a request gets depends on nothing but the request: not a bit, whatever runs beside it and however it runs.

And whatever is asked in whatever order, memory comes back and every request ends.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from promised import needs_promise, needs_rows

from hadal.checkpoints.save import save_model
from hadal.engine import LLM, EngineConfig, RequestOutput, SamplingParams, TooLong
from hadal.engine.core import Engine
from hadal.engine.kv.buckets import bucket_size
from hadal.engine.kv.pool import Pool
from hadal.engine.kv.prefix import BLOCK
from hadal.engine.request import Request
from hadal.models.build import build
from hadal.models.decoder import Decoder
from hadal.models.deepseek.config import DeepseekConfig
from hadal.models.dense.config import DenseConfig
from hadal.models.packed import packed_copy
from hadal.ops import linear
from hadal.ops.exact import stable_rows
from hadal.tasks import load_tasks
from hadal.tasks.words import build_tokenizer
from hadal.train.overlap import torch_threads

TOKENIZER = build_tokenizer(list(load_tasks(["sums"]).values()))
VOCABULARY = -(-TOKENIZER.size // 64) * 64
CONTEXT = 512


def make(arch: str) -> Decoder:
    if arch == "dense":  # three queries to a key head, odd on purpose
        config: DenseConfig | DeepseekConfig = DenseConfig(
            VOCABULARY, 96, 2, num_attention_heads=6, num_key_value_heads=2, intermediate_size=160, head_dim=16,
            max_position_embeddings=CONTEXT,
        )  # fmt: skip
    elif arch == "wide":  # one key head; sums of thousands, which libraries cut differently for one row
        config = DenseConfig(
            VOCABULARY, 448, 2, num_attention_heads=7, num_key_value_heads=1, intermediate_size=2304, head_dim=64,
            max_position_embeddings=CONTEXT,
        )  # fmt: skip
    else:
        config = DeepseekConfig(
            VOCABULARY, 96, 3, intermediate_size=128, moe_intermediate_size=64, kv_lora_rank=32, qk_nope_head_dim=16,
            v_head_dim=16, max_position_embeddings=CONTEXT, num_nextn_predict_layers=1,
        )  # fmt: skip
    model = build(config)
    model.initialise(1)
    return model.eval()


@pytest.fixture(scope="module", params=["dense", "deepseek"])
def model(request: pytest.FixtureRequest) -> Decoder:
    model = make(request.param)
    needs_promise(model)
    return model


def prompts_of(lengths: list[int], seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(20, TOKENIZER.size) for _ in range(length)] for length in lengths]


PROMPTS = prompts_of([3, 40, 150, 5, 90])
PARAMS = SamplingParams(max_tokens=45, seed=3, n=2, logprobs=0, ignore_eos=True)


def small(model: Decoder, tokens: int) -> int:
    """Bytes for a cache of so many tokens."""
    width = sum(heads * channels for heads, channels in model.cache_widths()[0])
    return tokens * (len(model.layers) + 1) * width * 4


@pytest.fixture(scope="module")
def alone(model: Decoder) -> list[RequestOutput]:
    """Each prompt in an engine of its own."""
    return [LLM(model, TOKENIZER).generate([prompt], PARAMS)[0] for prompt in PROMPTS]


def test_alone_it_is_what_a_loop_without_a_cache_draws(model: Decoder, alone: list[RequestOutput]) -> None:
    greedy = LLM(model, TOKENIZER).generate(PROMPTS, replace(PARAMS, temperature=0, n=1, max_tokens=12))
    for prompt, output in zip(PROMPTS, greedy, strict=True):
        ids = list(prompt)
        for token in output.outputs[0].token_ids:
            with torch.no_grad():
                logits = model.logits(model(torch.tensor([ids]))[0, -1])
            logits[[*TOKENIZER.forbidden_ids, *range(TOKENIZER.size, VOCABULARY)]] = float("-inf")
            assert token == int(logits.argmax())
            ids.append(token)
    assert len({tuple(s.token_ids) for o in alone for s in o.outputs}) == 2 * len(PROMPTS)


@pytest.mark.parametrize(
    "config",
    [
        EngineConfig(),
        EngineConfig(chunk=16),
        EngineConfig(rows=3),
        EngineConfig(speculate="ngram"),
        EngineConfig(speculate="mtp"),
        EngineConfig(keep_replies=True, chunk=48),
    ],
    ids=lambda c: f"chunk{c.chunk}-rows{c.rows}-{c.speculate}",
)
@pytest.mark.parametrize("threads", [2])
def test_company_chunks_hits_and_drafts_change_no_bit(
    model: Decoder, alone: list[RequestOutput], config: EngineConfig, threads: int
) -> None:
    if config.speculate == "mtp" and not isinstance(model.config, DeepseekConfig):
        pytest.skip("only DeepSeek's models have the module")
    with torch_threads(threads):
        needs_promise(model)
        llm = LLM(model, TOKENIZER, config)
        first = llm.generate(PROMPTS, PARAMS)
        again = llm.generate(PROMPTS, PARAMS)  # the beginnings of prompts are now in the store
    assert [o.outputs for o in first] == [o.outputs for o in alone]
    assert [o.outputs for o in again] == [o.outputs for o in alone]
    assert [o.cached_tokens for o in again] == [(len(p) - 1) // BLOCK * BLOCK for p in PROMPTS]


@pytest.mark.parametrize("form", ["float32:plain", "float32", "float16", "int8"])
def test_packed_matrices_keep_their_bits_too(model: Decoder, form: str) -> None:
    packed, _ = packed_copy(model, form)
    needs_promise(packed)
    params = replace(PARAMS, max_tokens=20)
    alone = [LLM(packed, TOKENIZER).generate([prompt], params)[0].outputs for prompt in PROMPTS]
    llm = LLM(packed, TOKENIZER, EngineConfig(chunk=64, speculate="ngram"))
    assert [o.outputs for o in llm.generate(PROMPTS, params)] == alone
    assert [o.outputs for o in llm.generate(PROMPTS, params)] == alone


def test_weights_that_no_gradient_reaches_give_the_same_bits(model: Decoder, alone: list[RequestOutput]) -> None:
    """torch multiplies by them in another way where a row's memory has gaps: a base under adapters has such weights."""
    frozen = make("dense" if isinstance(model.config, DenseConfig) else "deepseek").requires_grad_(False)
    assert [o.outputs for o in LLM(frozen, TOKENIZER).generate(PROMPTS, PARAMS)] == [o.outputs for o in alone]


@pytest.mark.parametrize("form", ["", "bfloat16:plain", "bfloat16", "float32"])
@pytest.mark.parametrize("arch", ["dense", "deepseek", "wide"])
def test_nor_do_bf16_and_long_sums_depend_on_company(arch: str, form: str) -> None:
    """bf16 hides most of what another order of addition changes, but not for long: log-probabilities are compared."""
    model, one = make(arch).bfloat16(), replace(PARAMS, n=1)
    if form:
        model, _ = packed_copy(model, form)
    with torch_threads(2):
        needs_promise(model)
        alone = [LLM(model, TOKENIZER).generate([prompt], one)[0].outputs for prompt in PROMPTS]
        assert [o.outputs for o in LLM(model, TOKENIZER).generate(PROMPTS, one)] == alone


def test_where_bits_may_depend_on_company_the_engine_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An operator that adds in another order at every third place: no number of rows helps."""

    class ByPlace(linear.PlainFloat32):
        form = "float32:by_place"

        def __call__(self, x_NK: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
            y_NO = super().__call__(x_NK, bias_O)
            y_NO[::3] *= 1 + 2**-20
            return y_NO

    monkeypatch.setitem(linear.FORMS, "float32:by_place", ByPlace)
    model = make("dense")
    save_model(tmp_path, model.config, model.state_dict())
    TOKENIZER.save(tmp_path)
    said: list[str] = []
    llm = LLM.load(tmp_path, form="float32:by_place", say=said.append)
    assert "float32:by_place" in llm.engine.inexact()
    (line,) = [line for line in said if "depend on what runs beside it" in line]
    assert "float32:by_place" in line and "hadal.machine.environment" in line
    said.clear()
    plain = LLM.load(tmp_path, form="float32:plain", say=said.append)
    needs_promise(plain.model)
    assert plain.engine.inexact() == "" and not [line for line in said if "beside" in line]
    fast = LLM.load(tmp_path, form="float32:plain", config=EngineConfig(exact=False), say=said.append)
    assert fast.engine.inexact() and not [line for line in said if "beside" in line], "who chose it need not be told"


def test_attention_whose_rows_know_each_other_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batched product that adds in another order where it has few queries."""
    original = torch.bmm

    def bmm(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return original(x, y) * (1 + 2**-20 * (x.shape[1] < 40))

    for arch in ("dense", "deepseek"):
        model = make(arch)
        needs_promise(model)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "bmm", bmm)
            assert "attention" in Engine(model, TOKENIZER).inexact()


def test_sequences_that_are_preempted_lose_nothing(model: Decoder, alone: list[RequestOutput]) -> None:
    llm = LLM(model, TOKENIZER, EngineConfig(cache_bytes=small(model, 700), reserve=16))
    preempted = 0
    original = llm.engine.scheduler._preempt

    def counted() -> None:
        nonlocal preempted
        preempted += 1
        original()

    llm.engine.scheduler._preempt = counted  # type: ignore[method-assign]
    long = replace(PARAMS, max_tokens=150)
    together = llm.generate(PROMPTS, long)
    assert preempted > 0
    for prompt, output in zip(PROMPTS, together, strict=True):
        (single,) = LLM(model, TOKENIZER, EngineConfig(cache_bytes=small(model, 700))).generate([prompt], long)
        assert output.outputs == single.outputs
    for output, reference in zip(together, alone, strict=True):
        for sample, start in zip(output.outputs, reference.outputs, strict=True):
            assert sample.token_ids[:45] == start.token_ids


def test_a_prompt_that_is_being_read_takes_memory_and_makes_way(model: Decoder) -> None:
    """The only sequence that runs moves to a longer row while a long prompt is in prefill: the two do not fit."""
    short, long = prompts_of([40, 300])
    cache = 700 * Engine(model, TOKENIZER).token_bytes
    engine = Engine(model, TOKENIZER, EngineConfig(cache_bytes=cache, reserve=16, chunk=8))
    params = SamplingParams(max_tokens=200, ignore_eos=True, temperature=0)
    first = engine.add(short, params, 0)
    for _ in range(80):
        engine.step()
    second = engine.add(long, replace(params, max_tokens=5), 0)
    waited = []
    while engine.has_work():
        engine.step()
        waited.append(len(engine.waiting))
        prefill = engine.scheduler.prefill
        buckets = [*engine.kv.buckets.values(), *([prefill.bucket] if prefill is not None else [])]
        assert engine.kv.used() == sum(bucket.rows * bucket.size for bucket in buckets) <= engine.kv.budget
    assert 1 in waited[waited.index(0) :], "it was put back"
    alone = LLM(model, TOKENIZER).generate([short, long], [first.params, second.params])
    assert [first.output().outputs, second.output().outputs] == [output.outputs for output in alone]


def test_drafts_are_accepted_where_text_repeats() -> None:
    """A text in a circle: the look-up drafts right, and fewer passes give the same tokens."""
    model = make("dense")
    prompt = prompts_of([6])[0] * 8
    params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
    plain, drafting = LLM(model, TOKENIZER), LLM(model, TOKENIZER, EngineConfig(speculate="ngram"))
    (expected,), (output,) = plain.generate([prompt], params), drafting.generate([prompt], params)
    assert output.outputs == expected.outputs
    assert drafting.engine.drafts.drafted >= drafting.engine.drafts.accepted > 0


def test_new_weights_are_noticed() -> None:
    model = make("dense")
    llm = LLM(model, TOKENIZER)
    params = SamplingParams(temperature=0, max_tokens=8)
    prompt = prompts_of([70])[0]
    llm.generate([prompt], params)
    with torch.no_grad():
        model.layers[0].attention.qkv_proj.weight.mul_(-1.5)
    model.changed()
    (output,) = llm.generate([prompt], params)
    assert output.cached_tokens == 0
    assert output.outputs == LLM(model, TOKENIZER).generate([prompt], params)[0].outputs


def test_users_with_different_salts_share_nothing() -> None:
    engine = Engine(make("dense"), TOKENIZER)
    prompt = prompts_of([70])[0]

    def run(salt: str) -> int:
        request = engine.add(prompt, SamplingParams(max_tokens=2), 0, salt)
        while engine.has_work():
            engine.step()
        return request.cached

    assert [run("a"), run("b"), run("a")] == [0, 0, 64]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(200, 320), (896, 896)])
def test_rows_are_padded_to_where_they_keep_their_bits(shape: tuple[int, int], threads: int) -> None:
    with torch_threads(threads):
        needs_rows("float32:plain", *shape)
        x, weight = torch.randn(300, shape[1]), torch.randn(shape)
        whole = torch.nn.functional.linear(x, weight)
        for n in [*range(1, 40), 64, 100, 113, 130]:
            rows = torch.zeros(stable_rows(n, torch.float32, shape), shape[1])
            rows[:n] = x[:n]
            assert torch.equal(torch.nn.functional.linear(rows, weight)[:n], whole[:n]), n


def test_buckets_come_in_few_sizes_that_waste_little() -> None:
    sizes = [bucket_size(n) for n in range(1, 5000)]
    assert all(n <= size < max(1.5 * n, n + 64) for n, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes) and len(set(sizes)) < 16


# ------------------------------------------------------------------------------ any order of events

EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 120), st.integers(1, 250), st.integers(1, 4), st.booleans()),
        st.tuples(st.just("abort"), st.integers(0, 9)),
        st.tuples(st.just("now"), st.integers(0, 9)),
        st.tuples(st.just("step"), st.integers(1, 12)),
    ),
    min_size=1,
    max_size=25,
)


def check_books(engine: Engine) -> None:
    """Every slot is free or taken by one sequence, every row is owned by one, and memory is inside the budget."""
    table = engine.table
    taken = [slot for slot, sequence in enumerate(table.sequences) if sequence is not None]
    assert sorted(taken + table.free) == list(range(len(table.sequences)))
    assert len(set(table.free)) == len(table.free)
    owned = [slot for bucket in engine.kv.buckets.values() for slot in bucket.slots.tolist()]
    assert len(set(owned)) == len(owned) and set(owned) <= set(taken)
    for slot in taken:
        sequence = table.sequences[slot]
        assert sequence is not None and sequence.slot == slot and sequence.sample is None
    for bucket in engine.kv.buckets.values():
        assert len(bucket) <= bucket.rows
        if len(bucket):
            assert int(table.length[bucket.slots].max()) <= bucket.size
    prefill = engine.scheduler.prefill
    buckets = [*engine.kv.buckets.values(), *([prefill.bucket] if prefill is not None else [])]
    assert engine.kv.used() == sum(bucket.rows * bucket.size for bucket in buckets)
    assert engine.kv.used() <= engine.kv.budget
    assert engine.kv.used() + engine.kv.prefix.tokens <= engine.kv.budget or len(engine.kv.prefix) == 0


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    events=EVENTS, capacity=st.integers(500, 3000), chunk=st.sampled_from([8, 64, 512]), ngram=st.booleans(),
    reserve=st.sampled_from([8, 300]),
)  # fmt: skip
def test_in_any_order_of_events_nothing_leaks_and_every_request_ends(
    events: list[tuple[object, ...]], capacity: int, chunk: int, ngram: bool, reserve: int
) -> None:
    model = MODEL
    config = EngineConfig(
        cache_bytes=capacity * 2 * 2 * 2 * 16 * 4, chunk=chunk, rows=7, keep_replies=True, reserve=reserve,
        speculate="ngram" if ngram else None,
    )  # fmt: skip
    engine = Engine(model, TOKENIZER, config)
    requests: list[Request] = []
    base = prompts_of([120], 5)[0]
    for event in events:
        match event:
            case ("add", int(length), int(tokens), int(n), bool(shared)):
                prompt = base[:length] if shared else prompts_of([length], len(requests))[0]
                try:
                    requests.append(engine.add(prompt, SamplingParams(max_tokens=tokens, n=n), len(requests)))
                except TooLong as error:
                    assert min(length + tokens, CONTEXT) > engine.longest
                    assert error.field == ("prompt" if length >= engine.longest else "max_tokens")
            case ("abort", int(which)) if requests:
                engine.abort(requests[which % len(requests)])
            case ("now", int(which)) if requests:
                engine.answer_now(requests[which % len(requests)])
            case ("step", int(count)):
                for _ in range(count):
                    engine.step()
        check_books(engine)
    steps = 0
    while engine.has_work():
        engine.step()
        check_books(engine)
        steps += 1
        assert steps < 20_000
    assert all(request.done for request in requests)
    for request in requests:
        for sample in (sequence.sample for sequence in request.sequences):
            assert sample is not None
            if sample.finish_reason == "length":
                assert len(sample.token_ids) == min(request.params.max_tokens or 0, CONTEXT - len(request.prompt))
    engine.release()
    engine.kv.prefix.clear()
    assert engine.kv.used() == 0 and len(engine.table.free) == len(engine.table.sequences)


MODEL = make("dense")


def test_runs_move_in_parts_where_not_all_fit_twice() -> None:
    """Four full rows of 64 move to rows of 128, where there is memory for four of those and half of one."""
    pool = Pool(4 * 128 + 64, 1, widths=[((1, 3),)] * 2, like=torch.zeros(1))
    bucket = pool.bucket(64)
    bucket.resize(4)
    source = pool.new_bucket(64)
    source.resize(4)
    source.fill(64)
    for part in source.parts:
        part[:] = torch.arange(4.0).view(1, 4, 1, 1, 1)
    bucket.join(torch.tensor([3, 0, 2, 1]), source, torch.arange(4), 64)
    assert pool.grow(torch.full((4,), 64))
    (moved,) = pool.busy()
    assert moved.size == 128 and sorted(moved.slots.tolist()) == [0, 1, 2, 3] and pool.used() == 4 * 128
    for row, slot in enumerate(moved.slots.tolist()):
        assert bool((moved.parts[0][:, row, :, :64] == [3, 0, 2, 1].index(slot)).all())
    pool.budget -= 128
    pool.buckets.clear()
    bucket = pool.bucket(64)
    bucket.resize(4)
    bucket.join(torch.tensor([3, 0, 2, 1]), source, torch.arange(4), 64)
    assert not pool.grow(torch.full((4,), 64)), "one of them has to be preempted"
    assert pool.used() <= pool.budget and pool.running == 4


def test_a_bucket_that_grows_row_by_row_is_seldom_copied_and_never_past_the_budget() -> None:
    def sizes(budget: int) -> list[int]:
        pool = Pool(budget, 1, widths=[((1, 1),)], like=torch.zeros(1))
        bucket, source = pool.bucket(64), pool.new_bucket(64)
        source.resize(1)
        found = []
        for slot in range(100):
            assert pool.reclaim(64)
            pool.reserve(bucket, 1)
            bucket.join(torch.tensor([slot]), source, torch.tensor([0]), 8)
            assert pool.used() <= budget
            found.append(bucket.rows)
        return found

    assert len(set(sizes(1000 * 64))) < 15, "with a copy for each new row the time grows with its square"
    assert sizes(100 * 64)[-1] == 100, "the last rows fit where there is memory for just as many"
