"""A recipe: every number that decides how a run ends, typed, read from TOML and frozen in run.json."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from math import isfinite
from pathlib import Path
from typing import Any

from hadal.configs.models import DeepseekConfig, DenseConfig, ModelConfig
from hadal.configs.reading import apply_override, nearest, read_dataclass
from hadal.errors import UserError
from hadal.evaluate.suite import EvaluationConfig
from hadal.train.corpus import CorpusConfig
from hadal.train.optim import OptimizerConfig
from hadal.train.rl import RLConfig

ARCHITECTURES = ("dense", "deepseek")


@dataclass(frozen=True)
class SizeConfig:
    """The model's shape; the vocabulary follows from the tasks."""

    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    intermediate_size: int = 384
    moe_intermediate_size: int = 128
    n_routed_experts: int = 8
    num_experts_per_tok: int = 2
    kv_lora_rank: int = 64
    num_nextn_predict_layers: int = 0

    def model_config(self, arch: str, vocab_size: int) -> ModelConfig:
        """The typed config of an architecture at this size."""
        width = self.hidden_size // self.num_attention_heads
        if arch == "dense":
            return DenseConfig(
                vocab_size,
                self.hidden_size,
                self.num_hidden_layers,
                self.num_attention_heads,
                self.num_key_value_heads,
                head_dim=width,
                intermediate_size=self.intermediate_size,
            )
        return DeepseekConfig(
            vocab_size,
            self.hidden_size,
            self.num_hidden_layers,
            self.num_attention_heads,
            self.intermediate_size,
            self.moe_intermediate_size,
            n_routed_experts=self.n_routed_experts,
            num_experts_per_tok=self.num_experts_per_tok,
            kv_lora_rank=self.kv_lora_rank,
            qk_nope_head_dim=width,
            qk_rope_head_dim=width,
            v_head_dim=width,
            num_nextn_predict_layers=self.num_nextn_predict_layers,
        )


@dataclass(frozen=True)
class PretrainConfig:
    """Steps at a rate that falls to zero, and shorter rounds of the same until every task is ready or a cap is met."""

    steps: int = 3000
    decay_share: float = 0.85
    """The last part of the steps, in which the rate falls to zero."""
    extra_steps: int = 600
    """Of a further round; its rate begins at half."""
    extra_rounds: int = 1
    warmup: int = 20
    check_problems: int = 64
    margin: float = 0.05
    """By how much thinking must beat answering for RL to have something to find."""
    checkpoint_every: int = 200
    router_bias_rate: float = 0.001
    mtp_weight: float = 0.1
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def rate(self, step: int) -> float:
        """The learning rates' factor at step `step`, the first being 0."""
        if step >= self.steps:
            return 0.5 * (1 - (step - self.steps) % self.extra_steps / self.extra_steps)
        return min(1.0, (step + 1) / self.warmup, (self.steps - step) / (self.decay_share * self.steps))


@dataclass(frozen=True)
class GrpoConfig(RLConfig):
    """An RL stage: how many updates, and how often it looks up from its work."""

    updates: int = 120
    warmup: int = 5
    decay_share: float = 0.4
    """The last part of the updates, in which the rate falls to zero."""
    held_out_every: int = 20
    held_out_problems: int = 50
    checkpoint_every: int = 20
    rollouts_every: int = 20
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=1e-3, muon_lr=0.0, beta2=0.99, eps=1e-8)
    )

    def rate(self, done: float) -> float:
        """The learning rate's factor when a share `done` of the updates is behind."""
        start = min(1.0, (done * self.updates + 1) / self.warmup)
        return start * min(1.0, (1 - done) / self.decay_share)


@dataclass(frozen=True)
class Recipe:
    """A whole run. Two runs with equal recipes (threads included) on one machine end in equal weights."""

    tasks: list[str]
    arch: str = "dense"
    seed: int = 0
    threads: int = 0
    dtype: str = "auto"
    model: SizeConfig = field(default_factory=SizeConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    evaluate: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES:
            raise UserError(f"arch is {self.arch!r}.", nearest(self.arch, ARCHITECTURES))
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise UserError(f"dtype is {self.dtype!r}.", nearest(self.dtype, ("auto", "float32", "bfloat16")))
        if not self.tasks:
            raise UserError("The recipe has no tasks.", "Name at least one.")
        _check_numbers(self.to_dict(), "")
        for name, share in (("grpo", self.grpo.decay_share), ("pretrain", self.pretrain.decay_share)):
            if not 0 < share <= 1:
                raise UserError(f"{name}.decay_share is {share}.", "It must be above 0 and at most 1.")
        for name in ("thinking_share", "habit_share"):
            if not 0 < getattr(self.corpus, name) < 1:
                raise UserError(f"corpus.{name} is {getattr(self.corpus, name)}.", "It must be between 0 and 1.")
        if self.model.hidden_size % self.model.num_attention_heads:
            raise UserError(
                f"model.hidden_size is {self.model.hidden_size}, not a multiple of "
                f"{self.model.num_attention_heads} heads."
            )
        if self.arch == "dense" and self.model.num_attention_heads % self.model.num_key_value_heads:
            raise UserError(
                f"model.num_attention_heads is {self.model.num_attention_heads}, not a multiple of "
                f"{self.model.num_key_value_heads} key and value heads."
            )

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data; `read_recipe` takes it back."""
        return asdict(self)


MAY_BE_ZERO = {
    "seed", "threads", "num_nextn_predict_layers", "extra_rounds", "levels_past_gold", "pass_problems",
}  # fmt: skip


def _check_numbers(table: dict[str, Any], where: str) -> None:
    """UserError for a whole number that is too small and a number that is none."""
    for key, value in table.items():
        least = 0 if key in MAY_BE_ZERO else 1
        if isinstance(value, dict):
            _check_numbers(value, f"{where}{key}.")
        elif isinstance(value, int) and not isinstance(value, bool) and value < least:
            raise UserError(f"{where}{key} is {value}.", f"It must be at least {least}.")
        elif isinstance(value, float) and not isfinite(value):
            raise UserError(f"{where}{key} is {value}.", "It must be a finite number.")


def to_toml(data: dict[str, Any], where: str = "") -> str:
    """Tables of numbers, text and lists in TOML; None has no form there and is left out."""
    plain = {key: value for key, value in data.items() if not isinstance(value, dict) and value is not None}
    text = "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in plain.items())
    for key, value in data.items():
        if isinstance(value, dict):
            text += f"\n[{where}{key}]\n" + to_toml(value, f"{where}{key}.")
    return text


def read_recipe(data: dict[str, Any]) -> Recipe:
    """A recipe from plain data."""
    return read_dataclass(Recipe, data, "")


def load_recipe_data(name: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The tables of a recipe file, or of a shipped recipe by its bare name, with `--set` applied."""
    path = Path(name)
    try:
        if path.suffix == ".toml":
            text = path.read_text(encoding="utf-8")
        else:
            text = (resources.files("hadal.recipes") / f"{name}.toml").read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"Recipe {name} cannot be read ({(error.strerror or str(error)).lower()}).") from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"Recipe {name} is not valid TOML: {error}.") from None
    for assignment in overrides:
        apply_override(data, assignment)
    return data
