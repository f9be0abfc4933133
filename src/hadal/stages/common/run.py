"""A run in progress: its folder, recipe, tasks and books, as the stages see them.

A stage is finished where its `result.json` is there, and only then. Everything before that may happen twice: a
stage that was stopped goes back to its newest whole checkpoint, metrics included, and does the rest again, to
the same last bit. So no order of writes needs to be guarded but this one: the result comes last.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hadal.checkpoints.load import load_config, load_model
from hadal.checkpoints.save import save_model
from hadal.cost.flops import forward_flops, mean_context, training_flops
from hadal.cost.ledger import Ledger, LedgerRecord
from hadal.cost.prices import LAPTOP
from hadal.engine import LLM
from hadal.errors import UserError
from hadal.files import JsonLines, write_json
from hadal.library.find import find_model
from hadal.machine.device import place
from hadal.models.build import build
from hadal.models.config import ModelConfig
from hadal.models.decoder import Decoder
from hadal.models.lora import LoraConfig, adapted_modules, attach, base_state
from hadal.ops.heap import give_back
from hadal.rng import Rng
from hadal.rollout import Query, Sample
from hadal.stages import CHECKPOINT, RunConfig, Stage
from hadal.stages.common.view import View
from hadal.tasks import Task
from hadal.text.tokenizer import Tokenizer
from hadal.train.optim import Optimizer
from hadal.train.state import State, StateFolder

VOCABULARY_MULTIPLE = 64
PUBLISHED = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""The files of a checkpoint."""


def padded(vocabulary: int) -> int:
    """The rows of the embedding of a model that is grown here, for a tokenizer of so many tokens."""
    return -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


class DamagedModel(Exception):
    """A finished stage's checkpoint is no longer what the stage wrote."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage)
        self.stage = stage


@dataclass
class Books:
    """What a stage has used since the last line in the ledger."""

    trained: int = 0
    sampled: int = 0
    flops: float = 0.0
    since: float = field(default_factory=time.perf_counter)


class RunFiles:
    """A run's folder as any stage uses it: results, states, logs and books. Nothing is kept that is not on disk."""

    model_config: ModelConfig
    """Of the model at work, which the books count by; whoever begins a stage sets it."""

    def __init__(self, folder: Path, view: View) -> None:
        self.folder, self.view = folder, view
        self.metrics = JsonLines(folder / "metrics.jsonl")
        self.timing = JsonLines(folder / "timing.jsonl")
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.books = Books()
        self.spent = sum(record.cost_usd for record in self.ledger.read())

    def stage_folder(self, stage: str) -> Path:
        """Where a stage keeps its results and state."""
        return self.folder / "stages" / stage

    # Results

    def result(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage left; None while it is not finished, or where that can no longer be read."""
        try:
            result = json.loads((self.stage_folder(stage) / "result.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return result if isinstance(result, dict) else None

    def finish(self, stage: str, result: dict[str, Any]) -> None:
        """Close the books of a stage and mark it finished."""
        self.enter_books(stage)
        folder = self.stage_folder(stage)
        StateFolder(folder / "state").prune()
        write_json(folder / "result.json", {**result, "checkpoint": checkpoint_digest(folder)})

    def reopen(self, stage: str) -> None:
        """Take a finished stage for unfinished: it carries on from its last checkpoint."""
        (self.stage_folder(stage) / "result.json").unlink(missing_ok=True)

    # Checkpoints of a stage in progress

    def saved_state(self, stage: str) -> State | None:
        """The newest whole checkpoint of a stage; says so where newer ones are damaged."""
        state, damaged = StateFolder(self.stage_folder(stage) / "state").load()
        if damaged:
            where = f"carrying on from step {state.step}" if state else "the stage begins anew"
            self.view.note(f"The checkpoint of {stage} at step {damaged[0]} is damaged: {where}.")
        return state

    def restore(self, stage: str, state: State | None, model: Decoder, optimizer: Optimizer) -> None:
        """Make model, optimiser and logs what they were at a checkpoint, or at the stage's start for None."""
        if state is None:
            self.metrics.truncate_after(-1, stage)
            self.timing.truncate_after(-1, stage)
            return
        optimizer.load_state(state.tensors)
        model.load_extra_state(state.tensors)
        for lines, name in ((self.metrics, "metrics"), (self.timing, "timing")):
            if not lines.cut(state.numbers[name]):
                self.view.note(f"{lines.path} has lost lines: the weights carry on, those figures are gone.")

    def checkpoint(
        self, stage: str, step: int, model: Decoder, optimizer: Optimizer, numbers: dict[str, Any],
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Save what `restore` takes, and what the stage keeps besides, and enter the books."""
        # The books come first: steps that a kill makes the machine do twice are then paid twice, as they were.
        self.enter_books(stage)
        numbers = numbers | {"metrics": self.metrics.size(), "timing": self.timing.size()}
        tensors = optimizer.state() | model.extra_state() | dict(tensors or {})
        StateFolder(self.stage_folder(stage) / "state").save(State(step, tensors, numbers))

    # Books

    def enter_books(self, stage: str) -> None:
        """Write what was used since the last entry into the ledger."""
        now = time.perf_counter()
        record = LedgerRecord.priced(
            stage,
            seconds=now - self.books.since,
            flops=self.books.flops,
            tokens_trained=self.books.trained,
            tokens_sampled=self.books.sampled,
        )
        self.ledger.append(record)
        self.spent += record.cost_usd
        self.books = Books(since=now)

    def cost_so_far(self) -> float:
        """Dollars, entered or not."""
        return self.spent + LAPTOP.cost(time.perf_counter() - self.books.since)

    def count_trained(self, tokens: int, length: int, share: float = 1.0) -> None:
        """Enter trained tokens in rows of `length`; `share` of a whole training step's work."""
        self.books.trained += tokens
        self.books.flops += share * tokens * training_flops(self.model_config, mean_context(length))

    def count_read(self, config: ModelConfig, tokens: int, length: int) -> None:
        """Enter tokens that another model than the stage's own has read, in rows of `length`."""
        self.books.flops += tokens * forward_flops(config, mean_context(length))

    def count_sampled(self, tokens: int, prefilled: int, length: float) -> None:
        """Enter sampled tokens, and prompt tokens read, in rows of about `length`."""
        self.books.sampled += tokens
        self.books.flops += (tokens + prefilled) * forward_flops(self.model_config, mean_context(int(length) or 1))


class Run(RunFiles):
    """Everything a stage of a recipe needs."""

    def __init__(
        self, folder: Path, recipe: RunConfig, tasks: dict[str, Task], tokenizer: Tokenizer, view: View
    ) -> None:
        super().__init__(folder, view)
        self.recipe, self.tasks, self.tokenizer = recipe, tasks, tokenizer
        self.vocabulary = padded(tokenizer.size)
        self.dtype = getattr(torch, recipe.dtype)
        self.device = place(recipe.device)
        self.lora, self.model_seed = LoraConfig(), recipe.seed
        self.cut_told = False
        """Whether it was said that the context cuts samples of this stage."""
        self._tasks = tasks

    def begin(self, stage: Stage) -> None:
        """Be what a stage needs: its tasks, its model's shape, its adapters; without what the one before has left."""
        gc.collect()
        give_back()
        self.tasks = {t.name: t for t in self.named(getattr(stage.config, "tasks", ()))} or self._tasks
        self.lora = getattr(stage.config, "lora", LoraConfig())
        if self.recipe.seeds == "stage":
            self.model_seed = self.seed_of(stage.name)
        self.cut_told = False
        if (grown := stage.config.grows(self.vocabulary)) is not None:
            self.model_config = grown
        elif stage.source:
            self.model_config = load_config(self.model_folder(stage.source))

    def named(self, names: Sequence[str]) -> list[Task]:
        """The recipe's tasks of these names."""
        known = dict(zip(self.recipe.tasks, self._tasks.values(), strict=False))
        return [known[name] for name in names]

    def check_alike(self, student: ModelConfig, teacher: ModelConfig, name: str) -> None:
        """UserError unless two models speak of the same tokens."""
        if student.vocab_size != teacher.vocab_size:
            raise UserError(
                f"The student's vocabulary has {student.vocab_size} tokens, that of {name} {teacher.vocab_size}.",
                "With logits and on-policy both must have the same tokenizer; with samples they need not.",
            )

    def seed_of(self, stage: str) -> int:
        """The recipe's seed, another for each stage: else all would draw alike."""
        return Rng(stage, self.recipe.seed).bits() >> 1

    def model_folder(self, stage: str) -> Path:
        """Where the model lies that a stage left, or the recipe's checkpoint."""
        return find_model(self.recipe.checkpoint) if stage == CHECKPOINT else self.stage_folder(stage)

    def new_model(self) -> Decoder:
        """The model that a stage makes from nothing, freshly initialised."""
        model = build(self.model_config)
        model.initialise(self.model_seed)
        return model.to(self.device)

    def check_model(self, stage: str) -> None:
        """DamagedModel unless a finished stage's checkpoint is what the stage wrote."""
        if checkpoint_digest(self.stage_folder(stage)) != (self.result(stage) or {}).get("checkpoint"):
            raise DamagedModel(stage)

    def load(self, stage: str, dtype: torch.dtype = torch.float32) -> Decoder:
        """The model that a finished stage left, or the recipe's checkpoint."""
        if stage != CHECKPOINT:
            self.check_model(stage)
        return load_model(self.model_folder(stage), dtype).to(self.device)

    def stage_model(self, stage: str) -> Decoder:
        """The model that a stage begins from, to be trained: in float32, or frozen with new adapters on it."""
        if not self.lora.rank:
            return self.load(stage)
        model = self.load(stage, self.dtype)
        attach(model, self.lora, self.model_seed)
        return model.to(self.device)

    def engine(self, model: Decoder) -> LLM:
        """The engine over a model and the run's tokenizer; what it samples is on the run's books."""
        return _BookedLLM(model, self)

    def save_stage_model(self, stage: str, model: Decoder, optimizer: Optimizer | None = None) -> None:
        """Write the masters as a checkpoint that transformers opens, or the model as it is where nothing trained it;
        adapters are merged into it."""
        save_checkpoint(self.stage_folder(stage), model, optimizer, self.tokenizer)


class _BookedLLM(LLM):
    def __init__(self, model: Decoder, run: Run) -> None:
        super().__init__(model, run.tokenizer)
        self.run = run

    def sample(self, queries: Iterable[Query]) -> Iterator[tuple[int, int, Sample]]:
        asked = list(queries)
        prompts: dict[int, list[int]] = {}
        lengths: list[int] = []
        for number, index, sample in super().sample(asked):
            # A question may be longer than the context; what memory lacks must decide no result.
            if sample.refused and len(sample.prompt_ids) < self.context:
                raise UserError(sample.error)
            prompts[number] = sample.prompt_ids
            lengths += [] if sample.refused else [len(sample.token_ids)]
            yield number, index, sample
        self._tell_of_cuts([(len(prompt), asked[number].params.max_tokens) for number, prompt in prompts.items()])
        read = sum(map(len, prompts.values()))  # once for all samples of a prompt
        if lengths:
            self.run.count_sampled(sum(lengths), read, read / len(prompts) + sum(lengths) / len(lengths))

    def _tell_of_cuts(self, asked: Iterable[tuple[int, int | None]]) -> None:
        """Say once that prompts leave less of the model's context than samples may have."""
        short = [left for length, most in asked if most is not None and (left := self.context - length) < most]
        if short and not self.run.cut_told:
            self.run.cut_told = True
            self.run.view.note(
                f"Samples are of at most {min(short):,} tokens where a prompt leaves no more: the model reads "
                f"{self.context:,}."
            )


def save_checkpoint(folder: Path, model: Decoder, optimizer: Optimizer | None, tokenizer: Tokenizer) -> None:
    """A checkpoint of the masters with its tokenizer, in the Hugging Face layout; adapters are merged.

    What was grown here is kept in float32, a checkpoint from elsewhere in the dtype that it is trained in.
    """
    if optimizer is None:
        state = model.state_dict()
    else:
        state = merged_state(model, optimizer, None if tokenizer.is_own else optimizer.dtype)
    save_model(folder, model.config, state, shard_bytes=1 << 62)  # one file, as PUBLISHED has it
    tokenizer.save(folder)
    ends: dict[str, Any] = {"eos_token_id": sorted(tokenizer.eos_ids)}
    if tokenizer.is_own:
        ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    generation = {
        **ends,
        "pad_token_id": tokenizer.pad_id,
        "suppress_tokens": tokenizer.forbidden_ids,
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
    }
    write_json(folder / "generation_config.json", generation)


@torch.no_grad()
def merged_state(model: Decoder, optimizer: Optimizer, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """The float32 masters, the rest of the model as it is, and what adapters add, in float32; the model is left alone.

    dtype: all of it in that one instead. What the model has in it already is not copied.
    """
    state = base_state(model)
    if dtype != optimizer.dtype:  # else the model has the masters, rounded
        state |= {name: tensor for name, tensor in optimizer.masters().items() if ".lora_" not in name}
    for name, module in adapted_modules(model):
        for kind, delta in module.deltas().items():
            merged = state[f"{name}.{kind}"].float() + delta
            state[f"{name}.{kind}"] = merged if dtype is None else merged.to(dtype)
    return state if dtype is None else {name: tensor.to(dtype) for name, tensor in state.items()}


def checkpoint_digest(folder: Path) -> str:
    """A digest over the files of a checkpoint folder; absent ones count as empty."""
    digest = blake2b(digest_size=16)
    for name in PUBLISHED:
        path = folder / name
        if path.is_file():
            digest.update(f"{name} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                while piece := file.read(1 << 24):
                    digest.update(piece)
    return digest.hexdigest()
