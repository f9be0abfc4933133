"""The engine against plain loops over the model, exact probabilities, and the trainer's own numbers."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hadal.checkpoints.save import save_model
from hadal.engine import LLM, EngineConfig, SamplingParams
from hadal.engine.sampling import SMALL, inverse_draw, keep_top_k, keep_top_p
from hadal.errors import UserError
from hadal.models.build import build
from hadal.models.decoder import Decoder
from hadal.models.deepseek.config import DeepseekConfig
from hadal.models.dense.config import DenseConfig
from hadal.rng import Rng, noise
from hadal.tasks import load_tasks
from hadal.tasks.words import build_tokenizer
from hadal.train.corpus import CorpusConfig, batches
from hadal.train.losses import pretraining_loss
from hadal.train.optim import OptimizerConfig
from hadal.train.optim.flat import FlatOptimizer
from hadal.train.rollouts import pack, predict_rows

TASKS = load_tasks(["sums", "letters"])
TOKENIZER = build_tokenizer(list(TASKS.values()))
VOCABULARY = -(-TOKENIZER.size // 64) * 64 + 64  # ids beyond the tokenizer's must never come out
POSITIONS = 96


def _model(arch: str) -> Decoder:
    if arch == "dense":
        return build(
            DenseConfig(VOCABULARY, 64, 2, intermediate_size=128, head_dim=16, max_position_embeddings=POSITIONS)
        )
    return build(
        DeepseekConfig(
            VOCABULARY, 64, 2, intermediate_size=128, moe_intermediate_size=64, kv_lora_rank=32, qk_nope_head_dim=16,
            v_head_dim=16, max_position_embeddings=POSITIONS,
        )
    )  # fmt: skip


@pytest.fixture(scope="module", params=["dense", "deepseek"])
def llm(request: pytest.FixtureRequest) -> LLM:
    """A model after 60 short steps: it ends its answers, and its distributions are neither flat nor certain."""
    model = _model(request.param)
    model.initialise(0)
    optimizer = FlatOptimizer(model, OptimizerConfig())
    engine = LLM(model, TOKENIZER)
    stream = batches(list(TASKS.values()), TOKENIZER, CorpusConfig(tokens=768, pool=4), 0, 0)
    for batch in islice(stream, 60):
        pretraining_loss(model, batch, engine.forbidden)[0].backward()
        optimizer.step()
        model.after_update(0.001)
    return engine


def _prompts() -> list[list[int]]:
    questions = ["What is 3 + 4?", "hi", "How many r in strawberry?", "What is 12 - 5 + 31?"]
    return [TOKENIZER.chat([{"role": "user", "content": text}]) for text in questions]


def _allowed(llm: LLM, ids: list[int]) -> Tensor:
    """Logits of the next token by one pass over everything, nothing cached."""
    with torch.no_grad():
        logits = llm.model.logits(llm.model(torch.tensor([ids]))[0, -1])
    never = [i for i in range(VOCABULARY) if i in TOKENIZER.forbidden_ids or i >= TOKENIZER.size]
    logits[never] = float("-inf")
    return logits


def _plain(llm: LLM, prompt: list[int], limit: int) -> list[int]:
    ids: list[int] = []
    while len(ids) < limit and ids[-1:] != [TOKENIZER.eos_id]:
        ids.append(int(_allowed(llm, prompt + ids).argmax()))
    return ids


def test_greedy_output_equals_a_plain_loop(llm: LLM) -> None:
    outputs = llm.generate(_prompts(), SamplingParams(temperature=0, max_tokens=24))
    for prompt, output in zip(_prompts(), outputs, strict=True):
        (sample,) = output.outputs
        expected = _plain(llm, prompt, 24)
        assert output.prompt_token_ids == prompt
        assert sample.token_ids == expected
        ended = expected[-1] == TOKENIZER.eos_id
        assert sample.finish_reason == ("stop" if ended else "length")
        assert sample.text == TOKENIZER.decode(expected[:-1] if ended else expected, special=True)


def test_a_batch_holds_samples_that_end_and_samples_that_do_not(llm: LLM) -> None:
    """What the other tests rest on: rows are dropped from the batch at different times."""
    outputs = llm.generate(_prompts(), SamplingParams(max_tokens=24, n=16, seed=0, logprobs=0))
    lengths = {len(s.token_ids) for o in outputs for s in o.outputs}
    assert len(lengths) > 5
    for sample in (s for o in outputs for s in o.outputs):
        assert len(sample.token_ids) == len(sample.logprobs) <= 24
        assert (sample.token_ids[-1] == TOKENIZER.eos_id) == (sample.finish_reason == "stop")
        assert TOKENIZER.eos_id not in sample.token_ids[:-1]
        assert sample.finish_reason == "stop" or len(sample.token_ids) == 24


def _split_mix(key: int, position: int) -> float:
    """SplitMix64's number for a key at a position, in whole numbers of any size (Steele and others 2014)."""
    mask = (1 << 64) - 1
    z = (key + (position + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) >> 11) / (1 << 53)


def test_noise_is_that_of_the_published_generator() -> None:
    keys = torch.tensor([0, 1, -1, -(1 << 63), (1 << 63) - 1, 123456789])
    for position in (0, 1, 1000, 1 << 40):
        values = noise(keys, torch.full_like(keys, position))
        assert values.tolist() == [_split_mix(int(key), position) for key in keys]
    many = noise(torch.full((4000,), 5), torch.arange(4000))
    assert abs(float(many.mean()) - 0.5) < 0.02 and len(set(many.tolist())) == 4000


def test_noise_is_what_the_scalar_generator_draws_in_turn() -> None:
    rng = Rng("any", 7)
    key = rng.state - (1 << 64) if rng.state >= 1 << 63 else rng.state
    assert noise(torch.full((500,), key), torch.arange(500)).tolist() == [rng.random() for _ in range(500)]


def _draw_one(logits: Tensor, params: SamplingParams, key: int, position: int) -> int:
    """The drawn token by sorting and adding up in float64, as the settings say."""
    weights = torch.softmax(logits.double() / params.temperature, 0)
    order = sorted(range(len(weights)), key=lambda i: (-float(weights[i]), i))
    kept, mass = set(), 0.0
    for i in order:
        if mass >= params.top_p:
            break
        kept.add(i)
        mass += float(weights[i])
    target = _split_mix(key, position) * mass
    for i in range(len(weights)):
        target -= float(weights[i]) if i in kept else 0.0
        if target < 0:
            return i
    raise AssertionError("past the end")


def test_sampled_output_equals_a_plain_loop_over_the_same_random_numbers(llm: LLM) -> None:
    limit = 20
    params = SamplingParams(temperature=0.8, top_p=0.9, max_tokens=limit, seed=11, n=3)
    requests = [llm.engine.add(prompt, params, 11) for prompt in _prompts()]
    keys = [[sequence.key for sequence in request.sequences] for request in requests]
    for request in requests:
        llm.engine.abort(request)
    assert len({key for part in keys for key in part}) == 3 * len(keys)
    for prompt, part, output in zip(_prompts(), keys, llm.generate(_prompts(), params), strict=True):
        for key, sample in zip(part, output.outputs, strict=True):
            ids: list[int] = []
            for t in range(limit):
                ids.append(_draw_one(_allowed(llm, prompt + ids), params, key, t))
                if ids[-1] == TOKENIZER.eos_id:
                    break
            assert sample.token_ids == ids


def test_streaming_gives_what_generating_gives(llm: LLM) -> None:
    for seed, temperature in ((0, 1.0), (1, 0.6), (0, 0.0)):
        params = SamplingParams(temperature, top_p=0.95, max_tokens=40, seed=seed)
        for prompt in _prompts():
            ids = llm.generate([prompt], params)[0].outputs[0].token_ids
            assert list(llm.stream(prompt, params)) == [i for i in ids if i != TOKENIZER.eos_id]


def _chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """Standard deviations of Pearson's statistic above its mean; rare outcomes are taken together."""
    expected = probabilities * counts.sum()
    common = expected >= 5
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    expected = torch.cat([expected[common], expected[~common].sum()[None]])
    if expected[-1] < 5:
        assert observed[-1] <= 25
        observed, expected = observed[:-1], expected[:-1]
    freedom = len(expected) - 1
    assert freedom > 0
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float((statistic - freedom) / (2 * freedom) ** 0.5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_p", [1.0, 0.8, 0.3])
def test_draws_follow_the_exact_distribution(temperature: float, top_p: float) -> None:
    logits = torch.tensor([0.3, -1.2, 2.0, float("-inf"), 1.1, 0.0, 1.9, -4.0])
    weights = [float(torch.exp(x.double() / temperature)) for x in logits]
    exact = [w / sum(weights) for w in weights]
    kept: list[int] = []
    for i in sorted(range(len(exact)), key=lambda i: -exact[i]):
        if sum(exact[j] for j in kept) < top_p:
            kept.append(i)
    mass = sum(exact[j] for j in kept)
    probabilities = torch.tensor([p / mass if i in kept else 0.0 for i, p in enumerate(exact)], dtype=torch.float64)
    N = 60_000
    uniform = torch.rand(N, generator=torch.Generator().manual_seed(0))
    kept_weights = keep_top_p(torch.softmax(logits.expand(N, -1) / temperature, -1), torch.full((N,), top_p))
    torch.testing.assert_close(kept_weights[0].double() / mass, probabilities, atol=1e-6, rtol=0)
    counts = inverse_draw(kept_weights, uniform.double()).bincount(minlength=len(exact)).double()
    assert (counts[probabilities == 0] == 0).all()
    if len(kept) > 1:
        assert _chi_square(counts, probabilities) < 4


@pytest.mark.parametrize("vocabulary", [300, SMALL + 904])
@pytest.mark.parametrize("scale", [0.0, 0.2, 3.0, 20.0])  # from all alike to one for sure
def test_filters_keep_what_sorting_everything_would(vocabulary: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(6, vocabulary, generator=generator) * scale * 4).round() / 4  # with many equals
    logits[0, : vocabulary // 2] = -torch.inf
    probability = torch.softmax(logits, -1)
    top_p, k = torch.tensor([0.95, 0.9999, 0.5, 1e-6, 0.99, 0.1]), torch.tensor([50, 1, 0, vocabulary, 7, 200])
    for row, order in enumerate(probability.argsort(dim=-1, descending=True, stable=True)):
        sums = probability[row, order].double().cumsum(0)
        within = int((sums < float(top_p[row]) * float(probability[row].sum(dtype=torch.float64))).sum()) + 1
        most = int(k[row]) or vocabulary
        by_sorting = keep_top_p(probability.double(), top_p).float()  # as on other devices
        top_ps = ((keep_top_p(probability, top_p), within), (by_sorting, within))
        for kept, count in (*top_ps, (keep_top_k(probability, k), most)):
            expected = torch.zeros(vocabulary).index_copy_(0, order[:count], probability[row, order[:count]])
            assert torch.equal(kept[row], expected)


def test_the_engine_samples_the_models_distribution(llm: LLM) -> None:
    prompt = _prompts()[0]
    outputs = llm.generate([prompt] * 6, SamplingParams(max_tokens=1, n=1000, seed=5).spread(6))
    first = torch.tensor([sample.token_ids[0] for output in outputs for sample in output.outputs])
    counts = first.bincount(minlength=VOCABULARY).double()
    probabilities = torch.softmax(_allowed(llm, prompt).double(), -1)
    assert probabilities.max() < 0.99
    assert _chi_square(counts, probabilities) < 4


@pytest.mark.parametrize("value", [0.0, 1 - 2**-24, 1 - 2**-53])
def test_the_ends_of_the_random_numbers_are_drawn_as_allowed_ids(value: float) -> None:
    logits = torch.full((1, 300), float("-inf"))
    logits[0, 40:90] = torch.linspace(-3, 1, 50)
    for temperature, top_p in ((1.0, 1.0), (1.0, 0.9), (100.0, 1.0), (0.01, 1.0)):
        weights = keep_top_p(torch.softmax(logits / temperature, -1), torch.tensor([top_p]))
        token = inverse_draw(weights, torch.tensor([value], dtype=torch.float64))
        assert 40 <= int(token) < 90 and float(weights[0, token]) > 0


@pytest.mark.parametrize("temperature", [100.0, 1.0, 0.0])
def test_ids_that_mean_nothing_never_come_out(llm: LLM, temperature: float) -> None:
    outputs = llm.generate(_prompts(), SamplingParams(temperature, max_tokens=24, n=64, seed=0))
    seen = {i for o in outputs for s in o.outputs for i in s.token_ids}
    assert max(seen) < TOKENIZER.size
    assert not seen.intersection(TOKENIZER.forbidden_ids)
    if temperature == 100:
        assert {TOKENIZER.eos_id, TOKENIZER.think_id, TOKENIZER.end_think_id} <= seen


def test_thinking_is_opened_forbidden_or_left_to_the_model(llm: LLM) -> None:
    prompts = _prompts()
    never = llm.generate(prompts, SamplingParams(100.0, max_tokens=32, thinking=False, n=32, seed=0))
    assert not any(TOKENIZER.think_id in s.token_ids for o in never for s in o.outputs)
    opened = llm.generate(prompts, SamplingParams(thinking=True, max_tokens=4, seed=0))
    assert [o.prompt_token_ids for o in opened] == [[*p, TOKENIZER.think_id] for p in prompts]
    again = llm.generate([o.prompt_token_ids for o in opened], SamplingParams(thinking=True, max_tokens=4, seed=0))
    assert again == opened


def test_the_seed_decides_the_samples(llm: LLM) -> None:
    def run(seed: int) -> list[list[int]]:
        outputs = llm.generate(_prompts(), SamplingParams(max_tokens=16, seed=seed, n=4))
        return [s.token_ids for o in outputs for s in o.outputs]

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert len({tuple(ids) for ids in run(1)[:4]}) > 1  # samples of one prompt differ


def test_each_prompt_gets_its_n_samples_in_order(llm: LLM) -> None:
    prompts = _prompts()
    outputs = llm.generate(prompts * 3, SamplingParams(max_tokens=2, n=100))  # more rows than run at once
    assert [o.prompt_token_ids for o in outputs] == prompts * 3
    assert all(len(o.outputs) == 100 for o in outputs)
    assert llm.generate([], SamplingParams()) == []


def test_logprobs_are_those_of_the_distribution_that_was_drawn_from(llm: LLM) -> None:
    (output,) = llm.generate([_prompts()[0]], SamplingParams(0.7, 0.8, 6, 3, n=4, logprobs=0, logprobs_of="sampled"))
    for sample in output.outputs:
        for t, logprob in enumerate(sample.logprobs):
            logits = _allowed(llm, output.prompt_token_ids + sample.token_ids[:t]).double() / 0.7
            probabilities = torch.softmax(logits, -1)
            ordered = probabilities.sort(descending=True).values
            kept = int((ordered.cumsum(0) < 0.8).sum()) + 1
            expected = (probabilities[sample.token_ids[t]] / ordered[:kept].sum()).log()
            assert logprob == pytest.approx(float(expected), abs=1e-4)


def test_sampler_and_trainer_agree_on_log_probabilities(llm: LLM) -> None:
    outputs = llm.generate(_prompts(), SamplingParams(max_tokens=48, seed=2, thinking=True, n=64, logprobs=0))
    items = [(o.prompt_token_ids, sample, 1.0) for o in outputs for sample in o.outputs]
    tokens = 0
    for rows in pack(items, TOKENIZER.pad_id, 2048):
        with torch.no_grad():
            logprobs, _ = predict_rows(llm.model, rows, llm.forbidden)
        difference = (logprobs - rows.old_logprobs).abs()
        assert float(difference.max()) < 1e-5
        tokens += len(rows.targets)
    assert tokens == sum(len(sample.token_ids) for _, sample, _ in items) > 1000


def test_a_long_prompt_does_not_shorten_its_neighbours_answers(llm: LLM) -> None:
    """Each row may fill the model's positions, whoever shares its batch."""
    short = _prompts()[1]
    long = [TOKENIZER.bos_id] + TOKENIZER.encode("x" * (POSITIONS - 5))
    for output in llm.generate([long, short], SamplingParams(temperature=0, max_tokens=1000)):
        room = POSITIONS - len(output.prompt_token_ids)
        assert output.outputs[0].token_ids == _plain(llm, output.prompt_token_ids, room)
    for output in llm.generate([long, short], SamplingParams(temperature=100, max_tokens=1000, n=8, seed=0)):
        room = POSITIONS - len(output.prompt_token_ids)
        unended = [len(sample.token_ids) for sample in output.outputs if sample.finish_reason == "length"]
        assert unended and set(unended) == {room}


@pytest.mark.parametrize("length", [POSITIONS, POSITIONS + 1, 5000])
def test_a_prompt_that_does_not_fit_is_a_users_mistake(llm: LLM, length: int) -> None:
    with pytest.raises(UserError, match=str(length)):
        llm.generate([[20] * length], SamplingParams())
    with pytest.raises(UserError, match=str(length)):
        next(llm.stream([20] * length, SamplingParams()))


def test_an_empty_prompt_is_a_users_mistake(llm: LLM) -> None:
    with pytest.raises(UserError, match="empty"):
        llm.generate([[]], SamplingParams())
    with pytest.raises(UserError, match="empty"):
        next(llm.stream([], SamplingParams()))


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_tokens": 0}]
)
def test_parameters_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        SamplingParams(**wrong)  # type: ignore[arg-type]


def test_the_memory_of_the_cache_is_counted_and_told(llm: LLM, tmp_path: Path) -> None:
    save_model(tmp_path, llm.model.config, llm.model.state_dict())
    TOKENIZER.save(tmp_path)
    said: list[str] = []
    loaded = LLM.load(tmp_path, config=EngineConfig(cache_bytes=3_000_000), form="float32", say=said.append)
    like = llm.model.config
    # keys and values of one token: two heads of 16 each, or a latent of 32 and one rotary key; float32, two layers
    token = 2 * 4 * (2 * 2 * 16 if isinstance(like, DenseConfig) else 32 + like.qk_rope_head_dim)
    holds = 3_000_000 // token // 64 * 64 - 1  # whole runs; the last token drawn is never read
    assert said == [f"The cache may take 3 MB: {holds:,} tokens."]
    assert loaded.generate([_prompts()[0]], SamplingParams(max_tokens=4, seed=0))[0].outputs[0].token_ids


def test_nothing_starts_torchs_compiler() -> None:
    """It takes two seconds to import, and `hadal chat` has ten to its first token."""
    code = """
import sys
from hadal.models.dense.config import DenseConfig
from hadal.engine import LLM, SamplingParams
from hadal.models.build import build
from hadal.text.tokenizer import Tokenizer
model = build(DenseConfig(64, 32, 1, 2, 1, head_dim=16, intermediate_size=32))
model.initialise(0)
LLM(model, Tokenizer.from_words([])).generate([[1, 2, 3]], SamplingParams(max_tokens=2, ignore_eos=True, seed=0))
print(sorted(name for name in sys.modules if name in ("torch._dynamo", "torch._inductor", "sympy")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr or done.stdout
