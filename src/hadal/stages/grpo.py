"""R1-Zero's reinforcement learning: sample, check, reinforce, climb."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from hadal import stages
from hadal.cost.flops import parameters
from hadal.cost.memory import PLAIN, Pass
from hadal.engine import LLM, SamplingParams
from hadal.engine.remote import RemoteRollout
from hadal.errors import UserError
from hadal.evaluate.suite import Verdict, ask, held_out
from hadal.files import plain, write_text
from hadal.machine.device import WORTH_MOVING
from hadal.models.config import ModelConfig
from hadal.models.decoder import Decoder
from hadal.models.lora import LoraConfig
from hadal.ops.heap import give_back
from hadal.ranges import check_ranges
from hadal.rng import Rng
from hadal.stages import Before, Stage
from hadal.stages.common.needs import Needs, Scene, training_ways
from hadal.stages.common.run import Run, save_checkpoint
from hadal.stages.common.watch import Watch, end_if_lost
from hadal.stages.pretrain import none_ready
from hadal.stages.sft import seed_dropout
from hadal.train.curriculum import Curriculum
from hadal.train.optim import Optimizer, OptimizerConfig, build_optimizer
from hadal.train.overlap import Ahead, follow, still_copy
from hadal.train.rl import Batch, RLConfig, UpdateResult, draw_batch, sampler_mismatch, train_on
from hadal.train.rollouts import Group

LEAVES = "model"
MOST_SAMPLES = 100_000
"""Of an update."""
REFERENCE = "reference."
SAMPLER = "sampler."
JUDGE_KEY = "HADAL_JUDGE_KEY"
"""The environment variable that holds the key of the model that rewards ask, where it asks for one."""
POLICY_BYTES = 8
"""Of each logit of a chunk, what log-probabilities with their entropy hold at their most."""
MONITOR = 9  # the stream of held-out problems that is monitored during training; the final evaluation uses others


@dataclass(frozen=True)
class Config(stages.Config, RLConfig):
    """An RL stage: how many updates, and how often it looks up from its work."""

    updates: int = 120
    warmup: int = 5
    decay_share: float = 0.4
    """The last part of the updates, in which the rate falls to zero."""
    held_out_every: int = 20
    held_out_problems: int = 50
    checkpoint_every: int = 20
    rollouts_every: int = 20
    overlap: bool = False
    """Draw each batch while the one before is trained on: one update stale, for the time that it saves."""
    checkpoint_activations: bool = False
    """Keep of each layer its input alone and compute the rest again for the gradient: the same bits, less memory."""
    tasks: list[str] = field(default_factory=list)
    lora: LoraConfig = field(default_factory=LoraConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=2e-4, muon_lr=0.0, beta2=0.99, eps=1e-8)
    )

    def rate(self, done: float) -> float:
        """The learning rate's factor when a share `done` of the updates is behind."""
        start = min(1.0, (done * self.updates + 1) / self.warmup)
        return start * min(1.0, (1 - done) / self.decay_share)

    def stretched(self, factor: float) -> Self:
        return replace(self, updates=int(self.updates * factor))


def check(stage: Stage, before: Before) -> None:
    """It has a model, and groups from which something can be learnt and that a machine can sample."""
    config: Config = stage.config
    before.need_model(stage.source, f"{stage.where}.from")
    check_ranges(config.settings, f"{stage.where}.options.")
    for options in config.reward_config().options.values():
        check_ranges(options, f"{stage.where}.rewards.")
    if config.samples == 1 and getattr(config.settings, "baseline", 0) == 1:
        raise UserError(
            f"{stage.where}.samples is 1.",
            f"{config.algorithm} compares a problem's samples: use 2 or more, such as 16.",
        )
    if config.prompts * config.samples > MOST_SAMPLES:
        raise UserError(
            f"{stage.where}.prompts is {config.prompts} and {stage.where}.samples {config.samples}.",
            f"At most {MOST_SAMPLES:,} responses make an update.",
        )


def needs(stage: Stage, scene: Scene) -> Needs:
    """Updates and the samples for them, the monitored problems, and the copies of the policy that it asks for."""
    config: Config = stage.config
    options, shape = config.settings, scene.shape_of(stage.source)
    responses = config.prompts * config.samples * (options.max_draws if options.count_all else 1)
    passes = _passes(config, -(-responses // config.minibatches), shape, scene.prompt)
    memory, trained, merged = scene.trained(config, shape, passes, POLICY_BYTES)
    sampled = scene.sampling_memory(shape, config.prompts, config.samples, config.max_tokens)
    monitored = config.held_out_problems * len(scene.run.tasks)
    peaks = {"sampling": max(sampled, scene.sampling_memory(shape, monitored, 1, config.max_tokens))}
    if config.overlap:
        peaks["sampling beside training"] = sampled + memory.peaks["training"]
    ahead = merged + trained if config.overlap else 0
    copies = {"what is sampled from": merged + ahead, "the reference": trained if options.kl else 0}
    rows = config.updates * config.prompts * config.samples
    drawn = rows + -(-config.updates // config.held_out_every) * monitored
    again, adapters = config.checkpoint_activations, bool(config.lora.rank)
    seconds = scene.rates.sampling(shape, drawn, config.max_tokens, scene.prompt)
    seconds += scene.rates.training(shape, rows * config.epochs, config.max_tokens, 0, again, adapters)
    return Needs(memory.beside(copies, peaks), seconds, training_ways(config, "micro_tokens"))


def _passes(config: Config, responses: int, shape: ModelConfig, prompt: int) -> list[Pass]:
    """Passes among which the largest is, of an update by so many responses (`hadal.train.rollouts.pack`).

    The longest responses that can be; so short ones that a pass takes all; and the longest that attention keeps
    weights of.
    """
    longest = max(1, min(config.max_tokens, shape.max_position_embeddings - prompt))
    found = []
    for length in {longest, min(longest, max(1, config.micro_tokens // responses)), min(longest, PLAIN)}:
        rows = min(responses, max(1, config.micro_tokens // length))
        found.append(Pass(rows, length, prompt, min(rows, config.prompts)))
    return found


def run_stage(run: Run, stage: Stage) -> None:
    """Train the model that another stage left. Leaves the last checkpoint, and the best on the monitored problems."""
    config: Config = stage.config
    seed = seed_of(run, stage.name)
    readiness = (run.result(stage.source) or {}).get("readiness", {})  # which pre-training leaves
    tasks = {name: task for name, task in run.tasks.items() if readiness.get(name, {"ready": True})["ready"]}
    folder = run.stage_folder(stage.name)
    state = run.saved_state(stage.name)
    model = run.stage_model(stage.source).train()
    optimizer = build_optimizer(model, config.optimizer, run.dtype)
    run.restore(stage.name, state, model, optimizer)
    model.checkpoint_activations = config.checkpoint_activations
    llm = run.engine(model)
    curriculum = Curriculum(tasks)
    reference = still_copy(model) if config.settings.kl else None
    sampler = still_copy(model) if config.overlap else None
    large = parameters(model.config).total >= WORTH_MOVING  # of a small model, that takes longer than it is worth
    step, best = 0, -1.0
    if state is not None:
        step, best = state.step, state.numbers["best"]
        for other, prefix in ((reference, REFERENCE), (sampler, SAMPLER)):
            if other is not None:
                other.load_state_dict(_unprefixed(state.tensors, prefix), strict=False)
        curriculum = Curriculum.from_state(tasks, state.numbers["curriculum"])

    earned = config.reward_config()
    judge = None
    if earned.endpoint:
        judge = RemoteRollout(earned.endpoint, earned.endpoint_model, JUDGE_KEY, patient=True, note=run.view.note)

    def draw(llm: LLM, step: int) -> Batch:
        batch = draw_batch(llm, tasks, curriculum, config, seed, step, judge)
        return replace(batch, mismatch=sampler_mismatch(llm, batch, config)) if sampler is not None else batch

    ahead = Ahead(run.engine(sampler), draw, torch.get_num_threads()) if sampler is not None else None
    run.view.stage(stage.name, config.updates, _about(config))
    watch = Watch(stage.name, config, config.held_out_problems * len(run.tasks), run.metrics.read())

    def enter(line: dict[str, Any], groups: list[Group]) -> None:
        run.metrics.append(line)
        for alarm in watch.look(plain(line), groups):
            run.metrics.append(alarm)
            run.view.note(f"{stage.name}, update {step}: {alarm['text']}")

    if not tasks:
        run.view.note(none_ready(run.tasks, readiness))

    while tasks and step < config.updates:
        scale = config.rate(step / config.updates)
        began = time.perf_counter()
        batch = ahead.take(step) if ahead is not None else draw(llm, step)
        if large:
            give_back()  # samples want memory of other sizes than training
        drawn = curriculum.state()  # without the batch that is begun below: who carries on draws it again
        last = step + 1 == config.updates
        seed_dropout(config.lora, seed, step)
        with ahead.beside(model, step + 1) if ahead is not None and not last else nullcontext():
            result = train_on(llm, optimizer, batch, config, seed, step, scale, reference)
        if large:
            give_back()
        seconds = time.perf_counter() - began
        loads = [layer for layer in model.load_metrics() if layer["load_max"]]  # some layers are not trained here
        model.after_update(0.0)
        step += 1
        length = sum(len(g.prompt) + len(g.samples[0].token_ids) for g in result.groups) / len(result.groups)
        run.count_trained(result.tokens_trained, int(length))
        levels = {name: round(curriculum.mean_level(name), 3) for name in tasks}
        line = {"stage": stage.name, "step": step, **result.metrics, "difficulty": levels}
        line |= {"stale": batch.stale} if ahead is not None else {}
        enter(line | ({"experts": loads} if loads else {}), result.groups)
        end_if_lost(stage.name, step, optimizer)
        tell(run, stage.name, step, result, seconds, levels)
        if step % config.rollouts_every == 0 or step == config.updates:
            write_rollouts(run, stage.name, step, result)
        if step % config.held_out_every == 0 or step == config.updates:
            shares = monitor(run, llm, config)
            enter({"stage": stage.name, "step": step, "held_out": shares}, result.groups)
            mean = sum(shares.values()) / len(shares)
            if mean > best:
                best = mean
                save_checkpoint(folder / "best", model, optimizer, run.tokenizer)
        if reference is not None and step % config.settings.reference_every == 0:
            follow(reference, model)
        if step % config.checkpoint_every == 0:
            numbers = {"curriculum": drawn, "best": best}
            others = _prefixed(reference, optimizer, REFERENCE) | _prefixed(sampler, optimizer, SAMPLER)
            run.checkpoint(stage.name, step, model, optimizer, numbers, others)

    run.save_stage_model(stage.name, model, optimizer)
    run.finish(stage.name, {"updates": step, "best": best, "curriculum": curriculum.state()})


def seed_of(run: Run, stage: str) -> int:
    """Of problems and samples. Runs from before all seeds went by stage had another for this kind."""
    if run.recipe.seeds == "stage":
        return run.seed_of(stage)
    return run.recipe.seed if stage == "grpo" else Rng(stage, run.recipe.seed).bits()


def _about(config: Config) -> str:
    """What is reinforced, as the stage is announced."""
    earned = [name for name, weight in config.reward_config().weights.items() if weight]
    if earned == ["accuracy"]:
        return "reinforcement learning: right answers are reinforced, nothing else is told"
    return f"reinforcement learning on rewards for {', '.join(earned)}"


def tell(
    run: Run, stage: str, step: int, result: UpdateResult, seconds: float, levels: Mapping[str, float]
) -> None:
    """What an update took and did, in the timing log and on the screen."""
    tokens = result.tokens_sampled + result.tokens_trained
    pace = {"seconds": seconds, "sampling": result.seconds_sampling, "tokens": tokens}
    run.timing.append({"stage": stage, "step": step, **pace, "tokens_per_second": tokens / seconds})
    shown = {"tokens_per_second": tokens / seconds, "cost_usd": run.cost_so_far(), "difficulty": levels}
    run.view.step(stage, step, {**result.metrics, **shown})
    group = result.groups[step % len(result.groups)]
    run.view.sample(group.problem.prompt, group.texts[0], group.rewards[0].right)


def _prefixed(model: Decoder | None, optimizer: Optimizer, prefix: str) -> dict[str, Tensor]:
    """What a copy of the policy has that training moves away from, as a checkpoint holds it."""
    trained = set(optimizer.names)
    named = model.named_parameters() if model is not None else ()
    return {prefix + name: value.detach() for name, value in named if name in trained}


def _unprefixed(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def monitor(run: Run, llm: LLM, config: Config) -> dict[str, float]:
    """Accuracy by task on the monitored held-out problems, as the model answers by itself."""
    n = config.held_out_problems
    out: dict[str, float] = {}
    problems = {name: held_out(task, task.default_difficulty, n, stream=MONITOR) for name, task in run.tasks.items()}
    flat = [p for part in problems.values() for p in part]
    params = SamplingParams(max_tokens=config.max_tokens, seed=run.recipe.seed)
    verdicts: list[Verdict] = [v[0] for v in ask(llm, run.tasks, flat, params)]
    position = 0
    for name, part in problems.items():
        out[name] = sum(v.right for v in verdicts[position : position + len(part)]) / len(part)
        position += len(part)
    return out


def write_rollouts(run: Run, stage: str, step: int, result: UpdateResult) -> None:
    """One line for each group: the question, each sample and what it earned."""
    lines = []
    for group in result.groups:
        record: dict[str, Any] = {
            "task": group.task,
            "difficulty": group.problem.meta["difficulty"],
            "prompt": group.problem.prompt,
            "answer": group.problem.answer,
            "samples": [
                {"text": text, "reward": r.total, "right": r.right, "note": r.note}
                | ({"parts": r.parts} if len(r.parts) > 1 else {})
                | ({"truncated": True} if s.finish_reason == "length" else {})
                for text, s, r in zip(group.texts, group.samples, group.rewards, strict=True)
            ],
        }
        lines.append(json.dumps(record, ensure_ascii=False))
    write_text(run.folder / "rollouts" / f"{stage}-{step:06d}.jsonl", "\n".join(lines) + "\n")
