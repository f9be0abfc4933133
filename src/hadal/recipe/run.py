"""A run in progress: its folder, recipe, tasks and books, as the stages see them."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hadal.configs.models import ModelConfig
from hadal.cost.flops import forward_flops, mean_context, training_flops
from hadal.cost.ledger import Ledger, LedgerRecord
from hadal.cost.prices import LAPTOP
from hadal.engine import LLM
from hadal.models.checkpoint import build, load_model, save_model
from hadal.models.decoder import Decoder
from hadal.recipe.config import Recipe
from hadal.recipe.run_folder import JsonLines, write_json
from hadal.recipe.view import View
from hadal.tasks import Task
from hadal.text.tokenizer import Tokenizer
from hadal.train.optim import Optimizer

VOCABULARY_MULTIPLE = 64


@dataclass
class Books:
    """What a stage has used since the last line in the ledger."""

    trained: int = 0
    sampled: int = 0
    flops: float = 0.0
    since: float = field(default_factory=time.perf_counter)


class Run:
    """Everything a stage needs; it keeps no state that is not on disk as well."""

    def __init__(self, folder: Path, recipe: Recipe, tasks: dict[str, Task], tokenizer: Tokenizer, view: View) -> None:
        self.folder, self.recipe, self.tasks, self.tokenizer, self.view = (
            folder,
            recipe,
            tasks,
            tokenizer,
            view,
        )
        self.metrics = JsonLines(folder / "metrics.jsonl")
        self.timing = JsonLines(folder / "timing.jsonl")
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.books = Books()
        self.spent = sum(record.cost_usd for record in self.ledger.read())
        self.planned: dict[str, float] = {}
        """Expected seconds of the stages still to come."""
        vocabulary = -(-tokenizer.size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        self.model_config: ModelConfig = recipe.model.model_config(recipe.arch, vocabulary)
        self.dtype = getattr(torch, recipe.dtype)

    def stage_folder(self, stage: str) -> Path:
        """Where a stage keeps its results and state."""
        return self.folder / "stages" / stage

    def result(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage left; None while it is not finished."""
        path = self.stage_folder(stage) / "result.json"
        return json.loads(path.read_text()) if path.exists() else None

    def finish(self, stage: str, result: dict[str, Any]) -> None:
        """Close the books of a stage and mark it finished."""
        self.enter_books(stage)
        write_json(self.stage_folder(stage) / "result.json", result)
        self.planned.pop(stage, None)

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

    def count_trained(self, tokens: int, length: int) -> None:
        """Enter trained tokens in rows of `length`."""
        self.books.trained += tokens
        self.books.flops += tokens * training_flops(self.model_config, mean_context(length))

    def count_sampled(self, tokens: int, prefilled: int, length: float) -> None:
        """Enter sampled tokens, and prompt tokens read, in rows of about `length`."""
        self.books.sampled += tokens
        self.books.flops += (tokens + prefilled) * forward_flops(self.model_config, mean_context(int(length) or 1))

    def new_model(self) -> Decoder:
        """A freshly initialised model of the recipe's seed."""
        model = build(self.model_config)
        model.initialise(self.recipe.seed)
        return model

    def stage_model(self, stage: str) -> Decoder:
        """The model that a finished stage left, in float32."""
        return load_model(self.stage_folder(stage))

    def engine(self, model: Decoder) -> LLM:
        """The engine over a model and the run's tokenizer."""
        return LLM(model, self.tokenizer)

    def save_stage_model(self, stage: str, model: Decoder, optimizer: Optimizer) -> None:
        """Write the float32 masters as a checkpoint that transformers opens."""
        save_checkpoint(self.stage_folder(stage), model, optimizer, self.tokenizer)


def save_checkpoint(folder: Path, model: Decoder, optimizer: Optimizer, tokenizer: Tokenizer) -> None:
    """A checkpoint of the float32 masters with its tokenizer, in the Hugging Face layout."""
    save_model(folder, model.config, model.state_dict() | optimizer.masters(model))
    tokenizer.save(folder)
    generation = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
        "suppress_tokens": tokenizer.forbidden_ids,
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
    }
    write_json(folder / "generation_config.json", generation)
