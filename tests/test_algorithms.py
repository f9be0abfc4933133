"""Every algorithm against a slow loop that follows its paper, and against TRL where that is installed."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import extending
import pytest
import torch
from small_policy import allowed, says, small_policy
from torch import Tensor
from updates import rl_update

from hadal.engine import LLM, Sample
from hadal.errors import UserError
from hadal.recipe.config import load_recipe_data, read_recipe
from hadal.stages.grpo import Config as GrpoConfig
from hadal.tasks import BUILT_IN, Rng
from hadal.tasks.words import build_tokenizer
from hadal.train import algorithms
from hadal.train.algorithms import Tokens, divergence, find, names, read_options, total
from hadal.train.curriculum import Curriculum
from hadal.train.losses import log_probabilities
from hadal.train.optim import OptimizerConfig
from hadal.train.optim.flat import FlatOptimizer
from hadal.train.rl import RLConfig, Trainer

torch.set_num_threads(1)
P, G, V, LIMIT = 3, 4, 7, 6
LR, STEPS = 1e-2, 15
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo as practised": ("grpo", {}),
    "DeepSeekMath": ("grpo", {"mean": "sequence", "std": True, "count_all": True, "clip_high": 0.2, "kl": 0.04}),
    "R1": ("grpo", {"mean": "sequence", "ratio": "sequence", "std": True, "clip_high": 0.2, "kl": 0.001}),
    "AsymRE": ("grpo", {"baseline": 0.7}),
    "a divergence without bias": ("grpo", {"kl": 0.1, "kl_unbiased": True}),
    "dapo": ("dapo", {}),
    "dr_grpo": ("dr_grpo", {}),
    "gspo": ("gspo", {"clip_low": 0.1, "clip_high": 0.1}),
    "truncated": ("grpo", {"importance_cap": 1.2}),
    "dapo, truncated, with a reference": ("dapo", {"importance_cap": 1.2, "kl": 0.1}),
}
DIVISORS = {"grpo": "token", "dapo": "token", "dr_grpo": "constant", "gspo": "sequence"}
DEVIATES = {"dapo", "gspo"}


@dataclass
class Batch:
    """Ragged responses: by prompt and sample, the reward, and by token what each policy thinks of it."""

    rewards: list[list[float]]
    tokens: list[list[list[int]]]
    old: list[list[list[float]]]
    reference: list[list[list[float]]]
    sampler: list[list[list[float]]]

    @property
    def responses(self) -> list[tuple[int, int]]:
        return [(i, j) for i in range(P) for j in range(G)]


def ragged(seed: int) -> tuple[Batch, Tensor]:
    """A batch, and logits of all its tokens in a row."""
    rng = Rng("ragged", seed)
    tokens = [[[rng.below(V) for _ in range(rng.between(1, LIMIT))] for _ in range(G)] for _ in range(P)]

    def near(step: float) -> list[list[list[float]]]:
        return [[[-1.9 + step * (2 * rng.random() - 1) for _ in ids] for ids in row] for row in tokens]

    rewards = [[float(rng.below(2)) for _ in range(G)] for _ in range(P - 1)] + [[1.0, 0.3, 0.3, 0.0]]
    batch = Batch(rewards, tokens, near(0.6), near(0.6), near(0.6))
    generator = torch.Generator().manual_seed(seed)
    count = sum(len(ids) for row in tokens for ids in row)
    return batch, (torch.randn(count, V, generator=generator, dtype=torch.float64) * 0.4).requires_grad_()


def literal(
    name: str, given: dict[str, Any], batch: Batch, logits: list[list[float]]
) -> tuple[float, list[list[float]]]:
    """Loss and its gradient by the logits, with every sum written out and every derivative by hand."""
    mean = given.get("mean", DIVISORS[name])
    low, high = given.get("clip_low", 0.2), given.get("clip_high", 0.2 if name == "dr_grpo" else 0.28)
    count = sum(len(ids) for row in batch.tokens for ids in row)
    value, position = 0.0, 0
    gradient = [[0.0] * V for _ in logits]
    for i, j in batch.responses:
        ids, rewards = batch.tokens[i][j], batch.rewards[i]
        average = sum(rewards) / G
        advantage = rewards[j] - given.get("baseline", 1.0) * average
        if given.get("std", name in DEVIATES) and len(set(rewards)) > 1:
            advantage /= math.sqrt(sum((r - average) ** 2 for r in rewards) / (G - 1))
        softmax = []
        for row in logits[position : position + len(ids)]:
            partition = sum(math.exp(x) for x in row)
            softmax.append([math.exp(x) / partition for x in row])
        new = [math.log(p[token]) for p, token in zip(softmax, ids, strict=True)]
        level = given.get("ratio", "geometric" if name == "gspo" else "token")
        changes = [a - b for a, b in zip(new, batch.old[i][j], strict=True)]
        for k in range(len(ids)):
            weight = {"token": 1 / count, "sequence": 1 / (P * G * len(ids)), "constant": 1 / (P * G * LIMIT)}[mean]
            worth = advantage
            if cap := given.get("importance_cap"):
                worth *= min(cap, math.exp(batch.old[i][j][k] - batch.sampler[i][j][k]))
            whole = {"token": changes[k], "sequence": sum(changes), "geometric": sum(changes) / len(ids)}[level]
            ratio = math.exp(whole)
            clipped = min(max(ratio, 1 - low), 1 + high)
            value -= weight * min(ratio * worth, clipped * worth)
            slopes = [0.0] * len(ids)  # of this token's term, by each log-probability of the response
            if ratio * worth <= clipped * worth:
                for m in range(len(ids)):
                    of = {"token": float(m == k), "sequence": 1.0, "geometric": 1 / len(ids)}[level]
                    slopes[m] -= weight * ratio * worth * of
            if beta := given.get("kl"):
                ahead = batch.reference[i][j][k] - new[k]
                k3, slope = math.exp(ahead) - ahead - 1, 1 - math.exp(ahead)
                if given.get("kl_unbiased"):
                    ratio = math.exp(changes[k])
                    k3, slope = ratio * k3, ratio * k3 + ratio * slope
                value += weight * beta * k3
                slopes[k] += weight * beta * slope
            for m, slope in enumerate(slopes):
                for v in range(V):
                    gradient[position + m][v] += slope * ((v == ids[m]) - softmax[m][v])
        position += len(ids)
    return value, gradient


def flat(values: list[list[list[float]]]) -> Tensor:
    return torch.tensor([x for row in values for ids in row for x in ids], dtype=torch.float64)


def hadals(name: str, given: dict[str, Any], batch: Batch, logprobs: Tensor) -> Tensor:
    algorithm, options = find(name), read_options(name, given)
    lengths = torch.tensor([len(batch.tokens[i][j]) for i, j in batch.responses])
    advantages = algorithm.advantages(torch.tensor(batch.rewards, dtype=torch.float64), options)
    advantages = advantages.flatten().repeat_interleave(lengths)
    old = flat(batch.old)
    if options.importance_cap:
        advantages = advantages * torch.exp(old - flat(batch.sampler)).clamp(max=options.importance_cap)
    tokens = Tokens(logprobs, old, advantages, torch.arange(P * G).repeat_interleave(lengths))
    terms = algorithm.loss(tokens, options)
    if options.kl:
        terms = terms + options.kl * divergence(tokens, flat(batch.reference), options.kl_unbiased)
    return total(terms, tokens, options.mean, int(lengths.sum()), P * G, LIMIT)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_equal_a_literal_loop(setting: str, seed: int) -> None:
    name, given = SETTINGS[setting]
    batch, logits = ragged(seed)
    ids = torch.tensor([t for row in batch.tokens for part in row for t in part])
    value = hadals(name, given, batch, log_probabilities(logits, ids))
    (gradient,) = torch.autograd.grad(value, logits)
    expected, by_hand = literal(name, given, batch, logits.tolist())
    assert abs(value.item() - expected) < 1e-6
    assert (gradient - torch.tensor(by_hand, dtype=torch.float64)).abs().max() < 1e-6
    assert gradient.abs().max() > 1e-3


def test_rewards_that_are_alike_have_no_advantage_however_they_are_rounded() -> None:
    rewards = torch.full((1, 7), 1.1)
    assert rewards.mean() != rewards[0, 0] or rewards.std() == 0  # what would be blown up
    for name in ("grpo", "dapo", "dr_grpo", "gspo"):
        assert not find(name).advantages(rewards, read_options(name, {})).any()


# The loop: micro-batches, references, importance weights


def responses() -> tuple[LLM, list[tuple[list[int], Sample, float]]]:
    """A policy in float64 and responses of its tokens, with an advantage each."""
    llm = small_policy(width=16)
    llm.model.double()
    rng = Rng("responses")
    prompts = [[rng.between(10, 30) for _ in range(n)] for n in (3, 1, 5)]
    items = []
    for i in range(9):
        ids = [rng.choice(allowed(llm)) for _ in range(rng.between(1, LIMIT))]
        logprobs = [-2.2 + rng.random() for _ in ids]
        items.append((prompts[i % 3], Sample(ids, logprobs, "", "stop"), [-0.5, 1.0, 0.0][(i // 3 + i) % 3]))
    return llm, items


@pytest.mark.parametrize("micro", [6, 1000])
@pytest.mark.parametrize(
    ("name", "given"),
    [("grpo", {}), ("grpo", {"kl": 0.1, "count_all": True}), ("dr_grpo", {}), ("gspo", {}),
     ("dapo", {"importance_cap": 1.1, "kl": 0.1})],
)  # fmt: skip
def test_micro_batches_add_up_to_the_gradient_of_whole_responses(name: str, given: dict[str, Any], micro: int) -> None:
    llm, items = responses()
    other, _ = responses()
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.add_(0.01)
    config = RLConfig(algorithm=name, options=given, micro_tokens=micro, max_tokens=LIMIT, temperature=0.7)
    options = config.settings
    trainer = Trainer(llm, config, find(name), options, other.model, defaultdict(float))
    weights = dict(llm.model.named_parameters())
    behaviour = trainer.logprobs_now(items) if options.importance_cap else {}
    part = [item for item in items if item[2] or options.count_all]
    assert trainer.add_gradients(part, behaviour, first=True)
    ours = {key: weight.grad for key, weight in weights.items()}

    def logprobs(model: Any, prompt: list[int], ids: list[int]) -> Tensor:
        hidden = model(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1]
        logits = model.logits(hidden).index_fill(1, llm.forbidden, float("-inf")) / 0.7
        return torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[:, None])[:, 0]

    loss = torch.zeros((), dtype=torch.float64)
    count = sum(len(sample.token_ids) for _, sample, _ in part)
    for prompt, sample, advantage in part:  # each by itself, all in one graph
        n = len(sample.token_ids)
        new, old = logprobs(llm.model, prompt, sample.token_ids), torch.tensor(sample.logprobs, dtype=torch.float64)
        worth = torch.full((n,), advantage, dtype=torch.float64)
        if options.importance_cap:
            worth = worth * torch.exp(new.detach() - old).clamp(max=1.1)
            old = new.detach()
        ratio = torch.exp(new - old)
        if name == "gspo":
            ratio = torch.exp((new - old).mean()).expand(n)
        cut = ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
        terms = -torch.minimum(ratio * worth, cut * worth)
        if options.kl:
            ahead = logprobs(other.model, prompt, sample.token_ids).detach() - new
            terms = terms + options.kl * (ahead.exp() - ahead - 1)
        divisor = {"token": count, "sequence": n * len(part), "constant": LIMIT * len(part)}[options.mean]
        loss = loss + terms.sum() / divisor
    for key, expected in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
        assert (ours[key] - expected).abs().max() < 1e-6, key
    assert max(float(grad.abs().max()) for grad in ours.values()) > 1e-4


SMALL = RLConfig(prompts=8, samples=8, max_tokens=8)


def update(llm: LLM, config: RLConfig, steps: int = 1, right: str = "e", **more: Any) -> list[dict[str, float]]:
    """Updates in which an answer that holds one of these letters is right."""
    optimizer = FlatOptimizer(llm.model, OptimizerConfig(lr=LR, muon_lr=0.0))
    tasks = {"letters": says(right)}
    return [
        rl_update(llm, optimizer, tasks, Curriculum(tasks), config, 0, step, **more).metrics for step in range(steps)
    ]


def test_groups_without_a_difference_are_drawn_anew() -> None:
    few = replace(SMALL, samples=2)
    (before,) = update(small_policy(), few)
    assert 0 < before["kept_groups"] < 1 and "groups" not in before
    (after,) = update(small_policy(), replace(few, options={"max_draws": 9}))
    assert after["groups"] > 8 and round(after["groups"] * after["kept_groups"]) == 8
    (none,) = update(small_policy(), replace(few, options={"max_draws": 3}), right="z")
    assert none["groups"] == 24 and none["kept_groups"] == 0 and none["grad_norm"] == 0  # it gives up in the end


def test_overlong_responses_are_punished_where_the_algorithm_says_so() -> None:
    (metrics,) = update(small_policy(), replace(SMALL, algorithm="dapo"))
    assert -1 <= metrics["reward_overlong"] < 0
    config = RLConfig(algorithm="dapo", max_tokens=20480).reward_config()
    assert config.weights["overlong"] == 1.0
    assert config.options["overlong"].overlong_tokens == 4096  # DAPO, section 4.1


@pytest.mark.parametrize("name", names())
def test_every_algorithm_learns(name: str) -> None:
    config = replace(SMALL, algorithm=name, options={"importance_cap": 2.0}, minibatches=2)
    lines = update(small_policy(), config, STEPS)
    part = "reward_accuracy" if name == "dapo" else "reward"
    assert lines[-1][part] > lines[0][part] + 0.2, [round(line[part], 2) for line in lines]


def test_a_reference_holds_the_policy_back() -> None:
    distances = {}
    for weight in (1e-6, 3.0):
        config = replace(SMALL, options={"kl": weight})
        distances[weight] = update(small_policy(), config, 6, reference=small_policy().model)[-1]["kl"]
    assert distances[3.0] < 0.5 * distances[1e-6], distances


# One file more


def cispo(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that docs/extending.md shows, beside the others."""
    extending.add_module(algorithms, "cispo", extending.example("An algorithm"), folder, monkeypatch)


def test_one_more_file_is_one_more_algorithm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cispo" not in names()
    with pytest.raises(UserError, match="There is no algorithm 'cispo'"):
        RLConfig(algorithm="cispo")
    cispo(tmp_path, monkeypatch)
    recipe = read_recipe({"tasks": ["letters"], "grpo": {"algorithm": "cispo", "options": {"clip_high": 3.0}}})
    assert recipe.stage("grpo").config.settings.clip_high == 3.0
    lines = update(small_policy(), replace(SMALL, algorithm="cispo", minibatches=2), STEPS)
    assert lines[-1]["reward"] > lines[0]["reward"] + 0.2


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"algorithm": "drgrpo"}, ["no algorithm 'drgrpo'", "Did you mean dr_grpo?"]),
        ({"options": {"clip_hi": 0.3}}, ["options.clip_hi", "Did you mean clip_high?"]),
        ({"options": {"std": 1}}, ["options.std is 1", "true or false"]),
        ({"options": {"mean": "tokens"}}, ["mean is 'tokens'", "Did you mean token?"]),
        ({"options": {"kl": -1.0}}, ["kl is -1.0", "at least 0"]),
        ({"options": {"ratio": "sequences"}}, ["ratio is 'sequences'", "Did you mean sequence?"]),
        ({"options": 3}, ["options is 3", "table"]),
        ({"algorithm": "expert_iteration", "options": {"std": True}}, ["options.std"]),
        ({"temperature": 0}, ["temperature is 0.0", "above 0"]),
    ],
)  # fmt: skip
def test_what_an_algorithm_does_not_have_is_told(table: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        read_recipe({"tasks": ["letters"], "grpo": table})
    assert all(words in f"{caught.value.cause} {caught.value.remedy}" for words in told), caught.value


def test_a_run_from_before_options_is_read_as_it_was() -> None:
    old = {"baseline": 1.0, "clip_low": 0.2, "clip_high": 0.28, "algorithm": "grpo", "prompts": 5}
    new = read_recipe({"tasks": ["letters"], "grpo": {"algorithm": "grpo", "prompts": 5}})
    assert read_recipe({"tasks": ["letters"], "grpo": old}) == new
    changed = read_recipe({"tasks": ["letters"], "grpo": {**old, "baseline": 0.9}}).stage("grpo").config
    assert changed.options == {"baseline": 0.9} and changed.settings.baseline == 0.9


def test_recipes_here_name_the_algorithm_they_were_measured_with() -> None:
    shipped = [Path(entry.name).stem for entry in resources.files("hadal.recipes").iterdir() if ".toml" in entry.name]
    recipes = {name: read_recipe(load_recipe_data(name)) for name in shipped}
    stages = {(name, stage.name): stage.config for name, recipe in recipes.items() for stage in recipe.stages}
    used = {place: config.algorithm for place, config in stages.items() if isinstance(config, GrpoConfig)}
    assert len(used) >= 10 and set(used.values()) == {"grpo"}, used
    assert read_recipe({"tasks": ["letters"]}).stage("grpo").config.algorithm == "dr_grpo"


# Side by side with TRL


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("trl", reason="TRL is not installed")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("qwen2")
    tokenizer = build_tokenizer([BUILT_IN["letters"]()])
    tokenizer.save(folder)
    config = transformers.Qwen2Config(
        vocab_size=tokenizer.size, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)  # TRL loads the reference from where the model lies
    return transformers.AutoModelForCausalLM.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "given", "theirs"),
    [
        ("grpo", {"mean": "sequence", "std": True, "kl": 0.04, "clip_high": 0.2},
         {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False}),
        ("grpo", {"mean": "sequence", "std": True, "kl": 0.04, "kl_unbiased": True, "clip_high": 0.2},
         {"loss_type": "grpo", "beta": 0.04}),
        ("grpo", {"clip_high": 0.2}, {"loss_type": "bnpo"}),
        ("dapo", {}, {"loss_type": "dapo", "epsilon_high": 0.28}),
        ("dr_grpo", {}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
        ("gspo", {}, {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4,
                      "epsilon_high": 4e-4}),
        ("cispo", {"clip_high": 0.2}, {"loss_type": "cispo", "epsilon_high": 1.2}),
    ],
)  # fmt: skip
def test_values_equal_those_of_trl(
    name: str, given: dict[str, Any], theirs: dict[str, Any], qwen2: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """TRL's own loss, of the same log-probabilities, rewards and lengths."""
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    cispo(tmp_path, monkeypatch)
    model, tokenizer = qwen2
    options = trl.GRPOConfig(
        output_dir=str(tmp_path), max_completion_length=LIMIT, num_generations=G, per_device_train_batch_size=P * G,
        use_cpu=True, bf16=False, report_to=[], **theirs,
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        model, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=options,
        train_dataset=datasets.Dataset.from_list([{"prompt": "x"}]), processing_class=tokenizer,
    )  # fmt: skip
    trainer.model.eval()
    trainer.current_gradient_accumulation_steps = 1
    for seed in range(3):
        batch, logits = ragged(seed)
        ids = torch.tensor([t for row in batch.tokens for part in row for t in part])
        logprobs = log_probabilities(logits, ids).detach().requires_grad_()
        ours = hadals(name, given, batch, logprobs)
        (our_gradient,) = torch.autograd.grad(ours, logprobs)

        lengths = [len(batch.tokens[i][j]) for i, j in batch.responses]
        mask = torch.arange(LIMIT) < torch.tensor(lengths)[:, None]

        def padded(values: Tensor, mask: Tensor = mask) -> Tensor:
            return torch.zeros(mask.shape, dtype=torch.float64).masked_scatter(mask, values)

        algorithm, settings = find(name), read_options(name, given)
        advantages = algorithm.advantages(torch.tensor(batch.rewards, dtype=torch.float64), settings).flatten()
        inputs = {
            "prompt_ids": torch.ones(P * G, 1, dtype=torch.long), "prompt_mask": torch.ones(P * G, 1),
            "completion_ids": torch.ones(P * G, LIMIT, dtype=torch.long), "completion_mask": mask.double(),
            "advantages": advantages, "old_per_token_logps": padded(flat(batch.old)),
            "ref_per_token_logps": padded(flat(batch.reference)), "num_items_in_batch": mask.sum(),
        }  # fmt: skip
        known = padded(logprobs)
        monkeypatch.setattr(
            trainer, "_get_per_token_logps_and_entropies",
            lambda *_, known=known, **__: (known, torch.zeros_like(known.detach()), None),
        )  # fmt: skip
        value = trainer._compute_loss(trainer.model, inputs)
        (their_gradient,) = torch.autograd.grad(value, logprobs)
        assert abs(float(value) - float(ours)) < 1e-6, (float(value), float(ours))
        assert (their_gradient - our_gradient).abs().max() < 1e-6
