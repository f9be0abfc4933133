"""Distillation: a stage's model teaches a smaller one, by its answers, by its distributions, or by grading.

On samples it is supervised fine-tuning on what the teacher said (R1, arXiv 2501.12948). On logits the student learns
the teacher's whole distribution of each next token there. On-policy the student answers, and learns where the teacher
would have gone on otherwise (reverse KL at its own tokens, arXiv 2306.13649): nothing that it would not meet itself.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from torch import Tensor

from hadal.cost.flops import parameters
from hadal.cost.memory import Pass
from hadal.engine.sampler import forbidden_ids
from hadal.errors import UserError
from hadal.models.decoder import Decoder
from hadal.reading import nearest
from hadal.rng import Rng
from hadal.rollout import Query, SamplingParams, require, sample_all
from hadal.stages import Before, Stage
from hadal.stages import sft as tuning
from hadal.stages.common.needs import Needs, Scene, training_ways
from hadal.stages.common.run import Run
from hadal.stages.common.watch import tell_left_out
from hadal.stages.sft import Objective, check_data, gather, gradients, seed_dropout, sft
from hadal.tasks import Problem
from hadal.train.conversations import Conversation
from hadal.train.corpus import Batch
from hadal.train.distillation import distillation_loss
from hadal.train.optim import Optimizer, build_optimizer

LEAVES = "model"
KL_BYTES = 28
"""Of each logit of a chunk, what the divergence of two models' distributions holds at its most: seven of float32."""
METHODS = ("samples", "logits", "on-policy")


@dataclass(frozen=True)
class Config(tuning.Config):
    """Distillation from a stage's model (`teacher`) into the stage's own.

    samples: on the teacher's answers in `data`, as R1's students; logits: on the same, towards the teacher's whole
    distribution of each next token; on-policy: the student answers, and the teacher says how likely it would have
    gone on so (reverse KL, arXiv 2306.13649).
    """

    method: str = "samples"
    teacher: str = ""
    tasks: list[str] = field(default_factory=list)
    updates: int = 60
    prompts: int = 30
    samples: int = 4
    temperature: float = 1.0
    max_tokens: int = 160

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise UserError(f"method is {self.method!r}.", nearest(self.method, METHODS))


def check(stage: Stage, before: Before) -> None:
    """It has a student, a teacher unless the teacher has spoken, and data unless the student is to speak."""
    config: Config = stage.config
    before.need_model(stage.source, f"{stage.where}.from")
    if config.method != "on-policy":
        check_data(stage, before)
    if config.method != "samples":
        before.need_model(config.teacher, f"{stage.where}.teacher")
    if config.method == "on-policy" and config.data:
        raise UserError(f"{stage.where} has data.", "On-policy, the student's samples are the data: leave it out.")


def needs(stage: Stage, scene: Scene) -> Needs:
    """What fine-tuning takes, and the teacher beside it where it is asked; on-policy the student's samples as well."""
    config: Config = stage.config
    if config.method == "samples":
        return tuning.needs(stage, scene)
    teacher = {"the teacher": scene.value_bytes * parameters(scene.shape_of(config.teacher)).total}
    if config.method == "logits":
        found = tuning.needs(stage, scene, KL_BYTES)
        return replace(found, memory=found.memory.beside(teacher))
    shape = scene.shape_of(stage.source)
    longest, count = scene.prompt + config.max_tokens, config.prompts * config.samples
    rows = max(1, min(count, config.pass_tokens // longest))
    memory, _, merged = scene.trained(
        config, shape, [Pass(rows, min(longest, shape.max_position_embeddings))], KL_BYTES
    )
    sampled = scene.sampling_memory(shape, config.prompts, config.samples, config.max_tokens)
    memory = memory.beside(teacher | {"what is sampled from": merged}, {"sampling": sampled})
    responses, limit = config.updates * count, config.max_tokens
    again, adapters = config.checkpoint_activations, bool(config.lora.rank)
    seconds = scene.rates.sampling(shape, responses, limit, scene.prompt)
    seconds += 2 * scene.rates.training(shape, responses, limit, scene.prompt, again, adapters)  # and the teacher's
    return Needs(memory, seconds, training_ways(config, "pass_tokens"))


def run_stage(run: Run, stage: Stage) -> None:
    """Teach the model that another stage left."""
    config: Config = stage.config
    if config.method == "samples":
        tuning.run_stage(run, stage)
        return
    student, teacher = run.stage_model(stage.source), run.load(config.teacher, run.dtype).eval()
    run.check_alike(student.config, teacher.config, config.teacher)
    forbidden = forbidden_ids(run.tokenizer, student)
    on_policy = config.method == "on-policy"

    def objective(model: Decoder, batch: Batch) -> tuple[Tensor, Tensor]:
        run.count_read(teacher.config, batch.ids.numel(), batch.ids.shape[1])
        return distillation_loss(model, teacher, batch, forbidden, reverse=on_policy)

    if on_policy:
        optimizer = _on_policy(run, stage.name, student, objective, config)
        done = {"updates": config.updates}
    else:
        conversations, _ = gather(run, config.data)
        optimizer = sft(
            run, student, conversations, forbidden, run.tokenizer.pad_id, config, stage.name, run.dtype,
            run.seed_of(stage.name), objective,
        )  # fmt: skip
        done = {"conversations": len(conversations)}
    run.save_stage_model(stage.name, student, optimizer)
    run.finish(stage.name, done)


def _on_policy(
    run: Run, stage: str, student: Decoder, objective: Objective, config: Config
) -> Optimizer:
    own = run.seed_of(stage)
    optimizer = build_optimizer(student, config.with_lr(), run.dtype)
    state = run.saved_state(stage)
    run.restore(stage, state, student, optimizer)
    student.checkpoint_activations = config.checkpoint_activations
    llm = run.engine(student)
    require(llm, "On-policy distillation", ids=True, weights=True)
    run.view.stage(stage, config.updates, f"{config.teacher} grades what the student says")
    for step in range(state.step if state else 0, config.updates):
        began = time.perf_counter()
        problems = _problems(run, own, step, config)
        seed = Rng("on-policy samples", own, step).bits() >> 1
        params = SamplingParams(config.temperature, max_tokens=config.max_tokens, seed=seed, n=config.samples)
        student.eval()
        queries = [
            Query([{"role": "user", "content": problem.prompt}], each)
            for problem, each in zip(problems, params.spread(len(problems)), strict=True)
        ]
        chosen, right = [], 0.0
        for problem, samples in zip(problems, sample_all(llm, queries), strict=True):
            for sample in samples:
                if sample.refused:
                    continue
                ids = [*sample.prompt_ids, *sample.token_ids]
                chosen.append(Conversation(ids, [(len(sample.prompt_ids), len(ids))]))
                right += run.tasks[problem.meta["task"]].score(problem, sample.response).right
        student.train()
        seed_dropout(config.lora, own, step)
        loss = gradients(student, chosen, objective, run.tokenizer.pad_id, config)
        scale = config.rate(step, config.updates)
        norm = optimizer.step(scale)
        student.after_update(0.0)
        for conversation in chosen:
            run.count_trained(len(conversation.ids), len(conversation.ids))
        done, learnt = step + 1, sum(c.learnt for c in chosen)
        line = {"loss": loss, "reward": right / len(chosen), "length": learnt / len(chosen), "grad_norm": norm}
        run.metrics.append({"stage": stage, "step": done, **line, **optimizer.figures})
        tell_left_out(run, stage, done, optimizer)
        seconds = time.perf_counter() - began
        run.timing.append({"stage": stage, "step": done, "seconds": seconds, "tokens_per_second": learnt / seconds})
        run.view.step(stage, done, {**line, "tokens_per_second": learnt / seconds, "cost_usd": run.cost_so_far()})
        if done % config.checkpoint_every == 0 and done < config.updates:
            run.checkpoint(stage, done, student, optimizer, {})
    return optimizer


def _problems(run: Run, seed: int, step: int, config: Config) -> list[Problem]:
    """Training problems of the tasks in turn, at all levels that have worked thoughts."""
    rng, tasks = Rng("on-policy", seed, step), list(run.tasks.values())
    found = []
    for i in range(config.prompts):
        task = tasks[(i + step) % len(tasks)]
        last = max(task.difficulties.start, min(task.gold_limit, task.difficulties.stop - 1))
        found.append(task.generate(rng.bits(), "train", rng.between(task.difficulties.start, last)))
    return found
