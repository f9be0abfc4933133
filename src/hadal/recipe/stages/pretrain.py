"""Pre-training: from random weights to a base that answers at once but knows how to think.

The rate falls to zero; where a task is not ready for RL by then (made to think it must beat made to answer), a
shorter round follows, up to a cap. Thinking is a skill that the base has and seldom uses: what R1-Zero's RL then
finds out is that it pays.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from hadal.engine import SamplingParams
from hadal.evaluate.suite import ask
from hadal.models.decoder import Decoder
from hadal.recipe.run import Run
from hadal.tasks import Problem, Task
from hadal.train.corpus import batches
from hadal.train.losses import pretraining_loss
from hadal.train.optim import Optimizer

STAGE = "pretrain"


def pretrain(run: Run) -> None:
    """Train the base; leaves its checkpoint, and which tasks are ready."""
    config = run.recipe.pretrain
    state = run.saved_state(STAGE)
    model = run.new_model()
    optimizer = Optimizer(model, config.optimizer, run.dtype)
    run.restore(STAGE, state, model, optimizer)
    llm = run.engine(model)
    step, end = (state.step, state.numbers["end"]) if state else (0, config.steps)
    run.view.stage(STAGE, end, _about(run))
    stream = batches(list(run.tasks.values()), run.tokenizer, run.recipe.corpus, run.recipe.seed, step)
    began, tokens = time.perf_counter(), 0
    while True:
        if step == end:
            ready = readiness(run, model)
            run.metrics.append({"stage": STAGE, "step": step, "readiness": ready})
            behind = ", ".join(name for name, r in ready.items() if not r["ready"])
            if not behind or step >= config.steps + config.extra_rounds * config.extra_steps:
                break
            run.view.note(f"Not ready for RL yet: {behind}. {config.extra_steps} more steps.")
            end += config.extra_steps
            run.view.stage(STAGE, end, _about(run))
        batch = next(stream)
        scale = config.rate(step)
        loss, next_token = pretraining_loss(model, batch, llm.forbidden, config.mtp_weight)
        loss.backward()
        norm = optimizer.step(scale)
        loads = model.load_metrics() if (step + 1) % 10 == 0 else []
        model.after_update(config.router_bias_rate)
        step += 1
        tokens += batch.ids.numel()
        run.count_trained(batch.ids.numel(), batch.ids.shape[1])
        if step % 10 == 0:
            seconds = time.perf_counter() - began
            value = float(next_token)
            line = {"stage": STAGE, "step": step, "loss": value, "rate": scale, "grad_norm": norm}
            run.metrics.append(line | ({"experts": loads} if loads else {}))
            run.timing.append(
                {
                    "stage": STAGE,
                    "step": step,
                    "seconds": seconds,
                    "tokens": tokens,
                    "tokens_per_second": tokens / seconds,
                }
            )
            run.view.step(
                STAGE,
                step,
                {"loss": value, "tokens_per_second": tokens / seconds, "cost_usd": run.cost_so_far()},
            )
            began, tokens = time.perf_counter(), 0
        if step % config.checkpoint_every == 0:
            run.checkpoint(STAGE, step, model, optimizer, {"end": end})

    run.view.step(STAGE, step, {"cost_usd": run.cost_so_far()})
    run.save_stage_model(STAGE, model, optimizer)
    run.finish(STAGE, {"steps": step, "readiness": ready})


def _about(run: Run) -> str:
    size = sum(1 for _ in run.tasks)
    return f"learning to read, answer and think: {size} task{'s' if size != 1 else ''}, loss on responses"


@torch.no_grad()
def readiness(run: Run, model: Decoder) -> dict[str, dict[str, Any]]:
    """For each task, on training problems at its default difficulty: made to think against made to answer.

    A task is ready where thinking beats answering, so that RL can find out. One that came without thoughts is
    ready where answering at once is sometimes right and not always: there RL can only sharpen that.
    """
    n, margin = run.recipe.pretrain.check_problems, run.recipe.pretrain.margin
    problems: list[Problem] = []
    for task in run.tasks.values():
        problems += [task.generate((9 << 32) + i, "train", task.default_difficulty) for i in range(n)]
    llm = run.engine(model)
    share: dict[str, dict[str, float]] = {name: {} for name in run.tasks}
    for kind, thinking in (("thinking", True), ("direct", False)):
        params = SamplingParams(max_tokens=run.recipe.grpo.max_tokens, seed=run.recipe.seed, thinking=thinking)
        verdicts = [v[0] for v in ask(llm, run.tasks, problems, params)]
        for i, name in enumerate(run.tasks):
            share[name][kind] = sum(v.right for v in verdicts[i * n : (i + 1) * n]) / n

    def ready(name: str) -> bool:
        thinking, direct = share[name]["thinking"], share[name]["direct"]
        return thinking > direct + margin if has_thoughts(run.tasks[name]) else 0 < direct < 1

    return {name: {**rates, "ready": ready(name)} for name, rates in share.items()}


def has_thoughts(task: Task) -> bool:
    """Whether any of a task's training problems comes with a thought to learn from."""
    return any(task.generate(i, "train", level).thought for level in task.difficulties for i in range(4))
