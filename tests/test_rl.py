"""Reinforcement learning: the arithmetic against slow loops that follow the papers, and the loop's promises."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor
from updates import rl_update

from hadal.engine import LLM, Sample
from hadal.models.build import build
from hadal.models.config import ModelConfig
from hadal.models.deepseek.config import DeepseekConfig
from hadal.models.dense.config import DenseConfig
from hadal.tasks import BUILT_IN, Rng
from hadal.tasks.words import build_tokenizer
from hadal.train.algorithms import Tokens, expert_iteration, find, names, read_options
from hadal.train.corpus import Batch
from hadal.train.curriculum import Curriculum
from hadal.train.losses import log_probabilities
from hadal.train.optim import OptimizerConfig
from hadal.train.optim.flat import FlatOptimizer
from hadal.train.rl import RLConfig
from hadal.train.rollouts import pack, predict_rows

torch.set_num_threads(1)


def test_expert_iteration_is_likelihood_of_right_samples_alone() -> None:
    rewards = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    options = expert_iteration.Options()
    assert expert_iteration.advantages(rewards, options).tolist() == [[1, 0], [0, 0]]
    logprobs = torch.tensor([-1.0, -2.0, -3.0])
    tokens = Tokens(logprobs, torch.zeros(3), torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0, 0, 1]))
    terms = expert_iteration.loss(tokens, options)
    assert terms.tolist() == [1.0, 2.0, 0.0]


def test_every_algorithm_gives_an_advantage_to_each_sample() -> None:
    for name in names():
        assert find(name).advantages(torch.rand(5, 3), read_options(name, {})).shape == (5, 3)


def test_packing_keeps_every_sampled_token_with_its_advantage() -> None:
    rng = Rng("pack")
    items = []
    for i in range(40):
        prompt = [rng.below(50) + 10 for _ in range(1 + rng.below(9))]
        ids = [rng.below(50) + 10 for _ in range(1 + rng.below(30))]
        items.append((prompt, Sample(ids, [-float(t) for t in ids], "", "stop"), float(i)))
    seen: dict[float, tuple[list[int], list[int]]] = {}
    for rows in pack(items, pad_id=2, tokens=200):
        assert rows.inputs.numel() <= 200 or len(rows.inputs) == 1
        assert len(rows.targets) == len(rows.old_logprobs) == len(rows.advantages) == int(rows.mask.sum())
        assert [-float(t) for t in rows.targets] == rows.old_logprobs.tolist()
        position = 0
        for row, count in enumerate(rows.mask.sum(1).tolist()):
            which = int(rows.prompt[row])
            prompt = rows.prompts[which, int(rows.start[which]) :].tolist() + [int(rows.inputs[row, 0])]
            targets = rows.targets[position : position + count].tolist()
            assert rows.inputs[row, 1:count].tolist() == targets[:-1]
            (advantage,) = set(rows.advantages[position : position + count].tolist())
            seen[advantage] = (prompt, targets)
            position += count
    assert seen == {advantage: (prompt, sample.token_ids) for prompt, sample, advantage in items}


@pytest.mark.parametrize("arch", ["dense", "deepseek"])
def test_a_shared_prompt_gives_the_loss_and_gradient_of_whole_rows(arch: str) -> None:
    config: ModelConfig = DenseConfig(60, 32, 2, 2, 1, 16, 64)
    if arch == "deepseek":
        config = DeepseekConfig(60, 32, 2, 2, 64, 32, n_routed_experts=4, kv_lora_rank=16)
    model = build(config).double()
    model.initialise(0)
    rng = Rng("shared")
    prompts = [[rng.below(50) + 5 for _ in range(n)] for n in (1, 9, 4, 9)]
    items = []
    for i in range(12):
        ids = [rng.below(50) + 5 for _ in range(1 + rng.below(7))]
        items.append((prompts[i % 4], Sample(ids, [0.0] * len(ids), "", "stop"), float(i - 5)))
    forbidden = torch.tensor([0, 3])
    weights = dict(model.named_parameters())
    (rows,) = pack(items, pad_id=2, tokens=1000)
    logprobs, _ = predict_rows(model, rows, forbidden)
    shared = torch.autograd.grad((logprobs * rows.advantages).sum(), list(weights.values()))
    total = torch.zeros((), dtype=torch.float64)
    for prompt, sample, advantage in items:  # each response behind its own copy of the prompt
        hidden = model(torch.tensor([prompt + sample.token_ids]))[0, len(prompt) - 1 : -1]
        logits = model.logits(hidden).index_fill(1, forbidden, float("-inf"))
        total = total + advantage * log_probabilities(logits, torch.tensor(sample.token_ids)).sum()
    assert abs((logprobs * rows.advantages).sum().item() - total.item()) < 1e-10
    for name, one, other in zip(weights, shared, torch.autograd.grad(total, list(weights.values())), strict=True):
        assert (one - other).abs().max() < 1e-9, name


@pytest.mark.parametrize("arch", ["dense", "deepseek"])
def test_checkpointed_layers_give_an_update_the_same_bits_and_keep_less(arch: str) -> None:
    """Prompts that rows share included, whose layers run for the second time when the rows' have."""
    outcomes, kept = [], []
    for checkpointed in (False, True):
        llm, optimizer = grown(arch=arch)
        llm.model.train().checkpoint_activations = checkpointed
        task = BUILT_IN["letters"]()
        task.judge = lambda problem, answer: "e" in answer  # so that random weights are right at times
        config = RLConfig(prompts=4, samples=4, max_tokens=12, options={"count_all": True, "kl": 0.1})
        reference = copy.deepcopy(llm.model).eval().requires_grad_(False)
        saved = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            tasks, curriculum = {"letters": task}, Curriculum({"letters": task})
            results = [
                rl_update(llm, optimizer, tasks, curriculum, config, 0, step, 1.0, reference) for step in range(2)
            ]
        loads = [layer["load_max"] for layer in llm.model.load_metrics()]
        outcomes.append(([r.metrics for r in results], optimizer.master.clone(), loads))
        kept.append(saved)
    assert outcomes[0][0] == outcomes[1][0] and outcomes[0][0][1]["grad_norm"] > 0
    assert torch.equal(outcomes[0][1], outcomes[1][1]) and outcomes[0][2] == outcomes[1][2]
    assert kept[1] < 0.7 * kept[0]


def test_the_curriculum_settles_where_success_is_neither_rare_nor_sure() -> None:
    task = BUILT_IN["sort"]()
    curriculum = Curriculum({"sort": task})
    rng = Rng("curriculum")

    def true_rate(level: int, frontier: float) -> float:
        return 1 / (1 + math.exp(level - frontier))

    for frontier in (6.0, 14.0):
        for _ in range(600):
            level = curriculum.draw("sort", rng)
            curriculum.record("sort", level, sum(rng.random() < true_rate(level, frontier) for _ in range(16)) / 16)
        drawn = [curriculum.draw("sort", rng) for _ in range(500)]
        inside = sum(0.05 <= true_rate(level, frontier) <= 0.95 for level in drawn) / 500
        assert inside > 0.7, (frontier, inside)
    restored = Curriculum.from_state({"sort": task}, curriculum.state())
    assert restored.rates == curriculum.rates


def grown(seed: int = 0, arch: str = "dense") -> tuple[LLM, FlatOptimizer]:
    tokenizer = build_tokenizer([BUILT_IN["letters"]()])
    config: ModelConfig = DenseConfig(tokenizer.size, 32, 2, 2, 1, 16, 64)
    if arch == "deepseek":
        config = DeepseekConfig(tokenizer.size, 32, 2, 2, 64, 32, n_routed_experts=4, kv_lora_rank=16)
    model = build(config)
    model.initialise(seed)
    return LLM(model, tokenizer), FlatOptimizer(model, OptimizerConfig(lr=3e-3, muon_lr=0.0))


def test_updates_are_the_same_twice_and_sampler_and_trainer_agree() -> None:
    results = []
    for _ in range(2):
        llm, optimizer = grown()
        task = BUILT_IN["letters"]()
        task.judge = lambda problem, answer: "e" in answer  # type: ignore[method-assign]
        tasks = {"letters": task}
        curriculum = Curriculum(tasks)
        config = RLConfig(prompts=4, samples=4, max_tokens=12, epochs=2, minibatches=2)
        metrics = [rl_update(llm, optimizer, tasks, curriculum, config, 0, step).metrics for step in range(3)]
        results.append((metrics, optimizer.master.clone()))
        assert all(m["mismatch"] < 1e-5 < m["drift"] for m in metrics)  # the policy moves, in four steps an update
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_figures_of_the_policy_are_those_of_before_it_moved() -> None:
    """Mismatch, and distance from a reference that is the policy itself: 0 however many steps an update has."""
    for options in ({"kl": 0.1}, {"kl": 0.1, "kl_unbiased": True}, {"kl": 0.1, "importance_cap": 2.0}):
        llm, optimizer = grown()
        task = BUILT_IN["letters"]()
        task.judge = lambda problem, answer: "e" in answer  # type: ignore[method-assign]
        config = RLConfig(prompts=4, samples=4, max_tokens=12, epochs=2, minibatches=4, options=options)
        reference = copy.deepcopy(llm.model).eval().requires_grad_(False)
        metrics = rl_update(
            llm, optimizer, {"letters": task}, Curriculum({"letters": task}), config, 0, 0, 1.0, reference
        ).metrics
        assert 0 <= metrics["mismatch"] < 1e-5 and abs(metrics["kl"]) < 1e-6 and metrics["drift"] > 1e-3
        assert metrics.get("capped", 0.0) == 0.0
    tasks = {"letters": BUILT_IN["letters"]()}  # of which nothing is right, and nothing is trained
    plain = rl_update(llm, optimizer, tasks, Curriculum(tasks), RLConfig(prompts=4, samples=4, max_tokens=12), 0, 1)
    assert "drift" not in plain.metrics and 0 < plain.metrics["mismatch"] < 1e-5


def test_reinforcement_makes_a_rewarded_answer_likely() -> None:
    """The loop in small: any answer that holds the letter e is right. Random weights learn to say it."""
    llm, optimizer = grown()
    task = BUILT_IN["letters"]()
    task.judge = lambda problem, answer: "e" in answer  # type: ignore[method-assign]
    tasks = {"letters": task}
    config = RLConfig(prompts=8, samples=16, max_tokens=8)
    first = last = 0.0
    for step in range(40):
        reward = rl_update(llm, optimizer, tasks, Curriculum(tasks), config, 0, step).metrics["reward"]
        first, last = (reward if step == 0 else first), reward
    assert last > first + 0.4, (first, last)


def test_a_gradient_that_is_not_finite_is_left_out() -> None:
    llm, optimizer = grown()
    before = optimizer.master.clone()
    optimizer.grad[0] = float("nan")
    optimizer.step()
    assert torch.equal(optimizer.master, before)


def test_multi_token_prediction_adds_the_loss_of_the_token_after_the_next() -> None:
    from hadal.train.losses import pretraining_loss

    config = DeepseekConfig(40, 32, 2, 2, 64, 32, n_routed_experts=4, kv_lora_rank=16, num_nextn_predict_layers=1)
    model = build(config).double()
    model.initialise(0)
    ids = torch.randint(0, 40, (3, 7), generator=torch.Generator().manual_seed(1))
    weight = torch.zeros(3, 7)
    weight[:, 3:6] = 1.0
    total, main = pretraining_loss(model, Batch(ids, weight), torch.tensor([0]), 0.3)
    # Position by position, from the paper: h'_i from the state at i and the token at i + 1, for the token at i + 2.
    with torch.no_grad():
        hidden = model(ids[:, :-1])
        nexts, ahead = [], []
        for row in range(3):
            for target in range(3, 6):
                logits = model.logits(hidden[row, target - 1])
                logits[0] = float("-inf")
                nexts.append(-torch.log_softmax(logits, 0)[ids[row, target]])
                states = model.mtp_hidden(hidden[row : row + 1, : target - 1], ids[row : row + 1, 1:target])
                logits = model.logits(states[0, target - 2])
                logits[0] = float("-inf")
                ahead.append(-torch.log_softmax(logits, 0)[ids[row, target]])
    assert abs(main.item() - torch.stack(nexts).mean().item()) < 1e-9
    assert abs(total.item() - (torch.stack(nexts).mean() + 0.3 * torch.stack(ahead).mean()).item()) < 1e-9
