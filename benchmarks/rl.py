"""Reinforcement learning side by side with TRL's GRPOTrainer: the same model, prompts, rewards and group sizes.

Small Qwen2-shaped models are made by our own supervised training on worked sums. Then, on the CPU in float32 (see
--dtype), in turns in one process:

- capped: an update in which every sample runs to the cap, and so the same work on both sides;
- natural: an update in which samples end where the model ends them (about half the cap). In both, right and wrong are
  drawn by a checksum, so that no group is alike and both sides train on every sample;
- learning: the time until a held-out accuracy is reached, for each learning rate of one sweep, for each seed, from a
  model of that seed that can think and answers at once by habit, as a base before R1-Zero does.

An update is split into sampling (the engine's, or `generate` of transformers), training (forward, backward, optimiser)
and overhead (all the rest: problems, rewards, tensors, logs). TRL is optional: pip install trl datasets transformers.

    python benchmarks/rl.py --json rl.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import prepared  # noqa: F401
import torch
from common import arguments, measured_rates

import hadal
from hadal.checkpoints.load import load_model
from hadal.checkpoints.save import save_model
from hadal.cost.flops import parameters
from hadal.engine import LLM, SamplingParams
from hadal.evaluate.suite import ask, held_out
from hadal.models.build import build
from hadal.models.decoder import Decoder
from hadal.models.dense.config import Qwen2Config
from hadal.tasks import BUILT_IN, Problem, Reward, Rng, Task
from hadal.tasks.words import build_tokenizer
from hadal.text.tokenizer import Tokenizer
from hadal.train.corpus import CorpusConfig, batches
from hadal.train.curriculum import Curriculum
from hadal.train.losses import pretraining_loss
from hadal.train.optim import OptimizerConfig
from hadal.train.optim.flat import FlatOptimizer
from hadal.train.rl import RLConfig, draw_batch, train_on

STREAM = 12  # of held-out problems
PARTS = ("capped", "natural", "learning")


@dataclass(frozen=True)
class Plan:
    """The sizes of it all."""

    hidden: int = 128
    layers: int = 3
    steps: int = 800
    """Of supervised training, for the timed updates."""
    base_steps: int = 1200
    """The same, for the bases of learning."""
    level: int = 9
    """Of the sums, in supervised training up to it and in RL at it."""
    prompts: int = 32
    samples: int = 16
    cap: int = 64
    timed: int = 5
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    gain: float = 0.5
    """What is to be reached: so much above the held-out accuracy before RL."""
    updates: int = 60
    """Within which it is to be reached."""
    look: int = 2
    """Updates between two looks at held-out accuracy, which are on nobody's clock."""
    problems: int = 200
    seeds: tuple[int, ...] = (0, 1, 2)


QUICK = Plan(
    hidden=64, layers=2, steps=150, base_steps=150, level=3, prompts=8, samples=4, cap=32, timed=2, rates=(1e-3,),
    gain=0.05, updates=4, problems=32, seeds=(0,),
)  # fmt: skip


@dataclass
class Clock:
    """Seconds of one update by what they went into; `total` is all of them."""

    sampling: float = 0.0
    training: float = 0.0
    total: float = 0.0
    tokens: int = 0
    reward: float = 0.0

    @property
    def overhead(self) -> float:
        return self.total - self.sampling - self.training


def timed(clock: Callable[[], Clock], part: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, its seconds added to a part of the clock that runs then."""

    def wrapped(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*arguments, **named)
        finally:
            now = clock()
            setattr(now, part, getattr(now, part) + time.perf_counter() - began)

    return wrapped


# The model and the prompts


def the_task(plan: Plan, coin: bool = False) -> Task:
    """coin: right or wrong by the text's checksum, so that no group is alike and every sample is trained on."""
    task = BUILT_IN["sums"]()
    if coin:
        task.score_all = lambda problem, texts: [  # type: ignore[method-assign]
            Reward(value := float(crc32(text.encode()) & 1), {"accuracy": value}) for text in texts
        ]
    task.gold_limit = plan.level
    task.difficulties = range(task.difficulties.start, plan.level + 1)
    return task


THINKING = CorpusConfig(thinking_share=0.95, habit_share=0.95, gold_decay=1.0, gap_share=0.0)
HABIT = replace(THINKING, thinking_share=0.6, habit_share=0.12)


def make_checkpoint(plan: Plan, folder: Path, seed: int, steps: int, corpus: CorpusConfig) -> None:
    """Supervised training on worked sums, from nothing."""
    task = the_task(plan)
    tokenizer = build_tokenizer([task])
    config = Qwen2Config(
        -(-tokenizer.size // 64) * 64, plan.hidden, plan.layers, 4, 2, head_dim=plan.hidden // 4,
        intermediate_size=3 * plan.hidden,
    )  # fmt: skip
    model = build(config).train()
    model.initialise(seed)
    llm = LLM(model, tokenizer)
    optimizer = FlatOptimizer(model, OptimizerConfig())
    for step, batch in enumerate(batches([task], tokenizer, corpus, seed, 0)):
        if step == steps:
            break
        pretraining_loss(model, batch, llm.forbidden)[0].backward()
        optimizer.step(min(1.0, (step + 1) / 20, (steps - step) / steps * 1.2))
    save_model(folder, config, optimizer.masters())
    tokenizer.save(folder)


def drawn(task: Task, plan: Plan, seed: int, updates: int) -> list[Problem]:
    """The problems of hadal's first updates, in order, as `draw_groups` draws them."""
    problems = []
    for step in range(updates):
        rng = Rng("rl", seed, step)
        for _ in range(plan.prompts):
            level = Curriculum({task.name: task}).draw(task.name, rng)
            problems.append(task.generate(rng.bits(), "train", level))
    return problems


def accuracy(model: Decoder, tokenizer: Tokenizer, plan: Plan) -> float:
    """On held-out problems, by hadal's engine whoever trained the model."""
    task = the_task(plan)
    params = SamplingParams(max_tokens=plan.cap, seed=7)
    verdicts = ask(LLM(model, tokenizer), {task.name: task}, held_out(task, plan.level, plan.problems, STREAM), params)
    return sum(v[0].right for v in verdicts) / len(verdicts)


# The two sides


class Hadal:
    name = "hadal"

    def __init__(
        self, folder: Path, plan: Plan, seed: int, lr: float, capped: bool = False, coin: bool = False
    ) -> None:
        self.plan, self.seed = plan, seed
        self.model, self.tokenizer = load_model(folder).train(), Tokenizer.load(folder)
        numbers = OptimizerConfig(lr=lr, muon_lr=0.0, beta2=0.999, eps=1e-8, clip=1.0)
        self.optimizer = FlatOptimizer(self.model, numbers)
        self.llm = LLM(self.model, self.tokenizer)
        if capped:
            end = torch.tensor([self.tokenizer.eos_id])
            self.llm.engine.forbidden = torch.cat([self.llm.engine.forbidden, end])
            self.llm.engine.sampler.forbidden = self.llm.engine.forbidden
        self.task = the_task(plan, coin)
        self.task.difficulties = range(plan.level, plan.level + 1)
        self.config = RLConfig("grpo", prompts=plan.prompts, samples=plan.samples, max_tokens=plan.cap)
        self.clock = Clock()
        drawn = timed(lambda: self.clock, "sampling", lambda queries, sample=self.llm.sample: list(sample(queries)))
        self.llm.sample = lambda queries: iter(drawn(queries))  # type: ignore[method-assign]
        self.step = 0

    def update(self) -> Clock:
        self.clock = Clock()
        began = time.perf_counter()
        tasks = {self.task.name: self.task}
        batch = draw_batch(self.llm, tasks, Curriculum(tasks), self.config, self.seed, self.step)
        result = train_on(self.llm, self.optimizer, batch, self.config, self.seed, self.step)
        self.step += 1
        self.clock.total = time.perf_counter() - began
        self.clock.training = result.seconds_training
        self.clock.tokens, self.clock.reward = result.tokens_sampled, result.metrics["reward"]
        return self.clock

    def accuracy(self) -> float:
        return accuracy(self.model, self.tokenizer, self.plan)


class Trl:
    """TRL's trainer on the same problems; `after` is called behind each of its updates and ends it by True."""

    name = "TRL"

    def __init__(
        self, folder: Path, plan: Plan, seed: int, lr: float, updates: int, after: Callable[[Clock], bool],
        capped: bool = False, coin: bool = False,
    ) -> None:  # fmt: skip
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
        from trl import GRPOConfig, GRPOTrainer

        self.plan, self.tokenizer = plan, Tokenizer.load(folder)
        task = the_task(plan, coin)
        single = the_task(plan)
        single.difficulties = range(plan.level, plan.level + 1)
        problems = drawn(single, plan, seed, updates)
        rows = [{"prompt": [{"role": "user", "content": p.prompt}], "place": place} for place, p in enumerate(problems)]
        theirs = PreTrainedTokenizerFast.from_pretrained(folder)  # Auto takes Qwen2's own words
        ids = theirs.apply_chat_template(rows[0]["prompt"], add_generation_prompt=True, return_dict=False)
        assert ids == self.tokenizer.chat(rows[0]["prompt"]), "the prompts are not the same"

        def reward(completion_ids: list[list[int]], place: list[int], **_: Any) -> list[float]:
            said = [[i for i in ids if i != self.tokenizer.eos_id] for ids in completion_ids]
            texts = [self.tokenizer.decode(ids, special=True) for ids in said]
            found = [task.score(problems[i], text).total for i, text in zip(place, texts, strict=True)]
            self.clock.reward = sum(found) / len(found)
            return found

        micro = max(1, plan.prompts * plan.samples // 8)
        extra = {"min_new_tokens": plan.cap} if capped else {}
        options = GRPOConfig(
            output_dir=str(folder / "trl"), use_cpu=True, bf16=False, fp16=False, seed=seed, learning_rate=lr,
            lr_scheduler_type="constant", max_steps=updates, per_device_train_batch_size=micro,
            gradient_accumulation_steps=plan.prompts * plan.samples // micro, num_generations=plan.samples,
            max_completion_length=plan.cap, beta=0.0, epsilon=0.2, epsilon_high=0.28, scale_rewards="none",
            loss_type="dapo", temperature=1.0, shuffle_dataset=False, report_to=[], logging_strategy="no",
            save_strategy="no", disable_tqdm=True, gradient_checkpointing=False, max_grad_norm=1.0,
            generation_kwargs={"suppress_tokens": self.tokenizer.forbidden_ids, "top_k": 0, **extra},
        )  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.clock = Clock()
        outer = self

        class Ticker(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                outer.clock = Clock()
                outer.began = time.perf_counter()

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                outer.clock.total = time.perf_counter() - outer.began
                control.should_training_stop = after(outer.clock)

        self.trainer = GRPOTrainer(
            model, reward_funcs=reward, args=options, train_dataset=Dataset.from_list(rows), processing_class=theirs,
            callbacks=[Ticker()],
        )  # fmt: skip
        trainer = self.trainer
        trainer.remove_callback(PrinterCallback)
        running = lambda: self.clock  # noqa: E731
        generate = trainer._generate

        def counted(*arguments: Any, **named: Any) -> Any:
            out = generate(*arguments, **named)
            self.clock.tokens += sum(len(c) for c in out[1])
            return out

        trainer._generate = timed(running, "sampling", counted)
        trainer.compute_loss = timed(running, "training", trainer.compute_loss)
        trainer.accelerator.backward = timed(running, "training", trainer.accelerator.backward)
        create = trainer.create_optimizer

        def created(*arguments: Any, **named: Any) -> Any:
            optimizer = create(*arguments, **named)
            if not hasattr(optimizer, "is_timed"):
                optimizer.step, optimizer.is_timed = timed(running, "training", optimizer.step), True
            return optimizer

        trainer.create_optimizer = created

    def run(self) -> None:
        self.trainer.train()

    def accuracy(self) -> float:
        with tempfile.TemporaryDirectory() as folder:
            self.trainer.model.save_pretrained(folder)
            return accuracy(load_model(Path(folder)), self.tokenizer, self.plan)


# What is measured


def update_times(folder: Path, plan: Plan, capped: bool, with_trl: bool) -> dict[str, list[Clock]]:
    """Clocks of `timed` updates a side, in turns, at a learning rate of next to nothing; the first turn is warm-up."""
    ours = Hadal(folder, plan, 0, 1e-12, capped, coin=True)
    found: dict[str, list[Clock]] = {"hadal": [], "TRL": []}

    def turn(clock: Clock) -> bool:
        found["TRL"].append(clock)
        found["hadal"].append(ours.update())
        return False

    if with_trl:
        Trl(folder, plan, 0, 1e-12, plan.timed + 1, turn, capped, coin=True).run()
    else:
        for _ in range(plan.timed + 1):
            found["hadal"].append(ours.update())
    found = {side: clocks[1:] for side, clocks in found.items() if clocks}
    for side, clocks in found.items():
        reward = statistics.mean(clock.reward for clock in clocks)
        assert 0.3 < reward < 0.7, f"{side} is not given the coin's rewards but {reward:.2f}: it trains on less"
    return found


@dataclass
class Learned:
    """A run towards the accuracy wanted: seconds on the clock, and None in `reached` where it was not reached."""

    side: str
    seed: int
    lr: float
    seconds: float = 0.0
    updates: int = 0
    reached: float | None = None
    curve: list[tuple[int, float, float]] = field(default_factory=list)
    """(updates, seconds, held-out accuracy)."""

    def take(self, clock: Clock, look: Callable[[], float], plan: Plan, target: float) -> bool:
        """Count an update; True where it is the last."""
        self.seconds += clock.total
        self.updates += 1
        if self.updates % plan.look == 0:
            self.curve.append((self.updates, self.seconds, look()))
            if self.curve[-1][2] >= target:
                self.reached = self.seconds
        return self.reached is not None or self.updates >= plan.updates


def learning(folder: Path, plan: Plan, seed: int, with_trl: bool) -> tuple[float, float, list[Learned]]:
    """(accuracy before, accuracy wanted, every run of the sweep)."""
    tokenizer = Tokenizer.load(folder)
    before = accuracy(load_model(folder), tokenizer, plan)
    target = min(0.95, before + plan.gain)
    runs = []
    for lr in plan.rates:
        one = Learned("hadal", seed, lr)
        ours = Hadal(folder, plan, seed, lr)
        while not one.take(ours.update(), ours.accuracy, plan, target):
            pass
        runs.append(one)
        if with_trl:
            other = Learned("TRL", seed, lr)
            sides: list[Trl] = []

            def after(clock: Clock, other: Learned = other, sides: list[Trl] = sides) -> bool:
                return other.take(clock, sides[0].accuracy, plan, target)

            sides.append(Trl(folder, plan, seed, lr, plan.updates, after))
            sides[0].run()
            runs.append(other)
        for run in runs[-(1 + with_trl) :]:
            end = f"{run.reached:.0f} s" if run.reached is not None else f"not in {run.seconds:.0f} s"
            words = f"seed {seed}, lr {lr:g}, {run.side}: {before:.2f} -> {target:.2f} {end} ({run.updates} updates)"
            print(f"  {words}", flush=True)
    return before, target, runs


def main() -> None:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="these alone")
        parser.add_argument("--seeds", type=int, nargs="+", help="of learning (default: 0 1 2)")

    args = arguments(__doc__, more=more)
    plan = QUICK if args.quick else Plan()
    seeds = tuple(args.seeds or plan.seeds)
    rates, _ = measured_rates(args)
    with_trl = trl_is_there()
    data: dict[str, Any] = {
        "benchmark": "rl", "quick": args.quick, "date": time.strftime("%Y-%m-%d"), "hadal": hadal.__version__,
        "torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(), "matrix_flops_per_second": rates,
        "dtype": "float32", "plan": vars(plan) | {"seeds": seeds}, "updates": {}, "learning": [],
    }  # fmt: skip

    def keep() -> None:
        if args.json:
            args.json.write_text(json.dumps(data, indent=2) + "\n")

    print(f"{plan.prompts} x {plan.samples} samples of up to {plan.cap} tokens; float32 on both sides.")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "timed"
        timed_parts = [part for part in ("capped", "natural") if part in args.parts]
        if timed_parts:
            make_checkpoint(plan, folder, 0, plan.steps, THINKING)
            print(f"Model: {parameters(load_model(folder).config).total:,} parameters.")
        for part in timed_parts:
            clocks = update_times(folder, plan, part == "capped", with_trl)
            data["updates"][part] = shown(part, clocks, plan)
            keep()
        for seed in seeds if "learning" in args.parts else ():
            folder = Path(scratch) / f"base{seed}"
            make_checkpoint(plan, folder, seed, plan.base_steps, HABIT)
            before, target, runs = learning(folder, plan, seed, with_trl)
            data["learning"].append(
                {"seed": seed, "before": before, "target": target, "runs": [asdict(r) for r in runs]}
            )
            keep()  # a long part
    told(data["learning"])


def trl_is_there() -> bool:
    try:
        import datasets  # noqa: F401
        import transformers
        import trl  # noqa: F401
    except ModuleNotFoundError:
        print("TRL is not installed: only hadal is measured. pip install trl datasets transformers adds it.")
        return False
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return True


def shown(part: str, clocks: dict[str, list[Clock]], plan: Plan) -> dict[str, Any]:
    """Print the medians of an update's parts, and their ratios; returns all figures."""
    names = ("total", "sampling", "training", "overhead")
    out: dict[str, Any] = {}
    heads = ("seconds", 9), ("sampling", 10), ("training", 10), ("overhead", 10), ("tokens a sample", 17), ("reward", 8)
    print(f"\n{part:10}" + "".join(f"{head:>{width}}" for head, width in heads) + f"{'n':>4}")
    for side, found in clocks.items():
        medians = {name: statistics.median(getattr(c, name) for c in found) for name in names}
        length = statistics.mean(c.tokens for c in found) / (plan.prompts * plan.samples)
        reward = statistics.mean(c.reward for c in found)
        every = [{name: getattr(c, name) for name in names} for c in found]
        out[side] = {"median": medians, "tokens_a_sample": length, "reward": reward, "clocks": every}
        row = "".join(f"{medians[name]:{width}.2f}" for name, width in zip(names, (9, 10, 10, 10), strict=True))
        print(f"{side:10}{row}{length:17.1f}{reward:8.3f}{len(found):4}")
    if "TRL" in out:
        ratios = {name: out["TRL"]["median"][name] / max(out["hadal"]["median"][name], 1e-9) for name in names}
        out["ratio"] = ratios
        row = "".join(f"{ratios[name]:{width}.2f}x" for name, width in zip(names, (8, 9, 9, 9), strict=True))
        print(f"{'hadal is':10}{row}")
    return out


def told(seeds: list[dict[str, Any]]) -> None:
    """Print, for each seed, the best of each side's sweep."""
    for entry in seeds:
        best = {}
        for side in ("hadal", "TRL"):
            times = [run["reached"] for run in entry["runs"] if run["side"] == side and run["reached"] is not None]
            best[side] = min(times, default=None)
        words = ", ".join(f"{side} {'never' if t is None else f'{t:.0f} s'}" for side, t in best.items())
        ours, theirs = best["hadal"], best["TRL"]
        ratio = f": {theirs / ours:.2f}x sooner" if ours and theirs else ""
        print(f"seed {entry['seed']}, best of the sweep to {entry['target']:.2f}: {words}{ratio}")


if __name__ == "__main__":
    main()
