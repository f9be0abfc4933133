"""What the configs of all families share, as numbers only; each family's own are in the `config` of its folder.

Field names are those of Hugging Face's config.json, so that `to_dict` is what transformers reads and `from_dict` takes
what it wrote. Nothing here imports torch: help texts and cost sums need shapes only.
"""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import Any, ClassVar, Self

from hadal.errors import UserError
from hadal.ops.rope import RopeScaling, read_rope, rope_to_dict
from hadal.reading import read_dataclass


class ModelConfig:
    """The numbers of a model. A subclass is a frozen dataclass, and a row of its family's table of model types."""

    model_type: ClassVar[str]
    architecture: ClassVar[str]
    """The class of transformers that opens the folder."""

    default_theta: ClassVar[float] = 10_000.0
    """The base of rotary positions where config.json names none."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    initializer_range: float
    rope_scaling: RopeScaling | None

    @property
    def experts_per_token(self) -> int:
        """How many routed experts a token visits in a layer of experts; 0 where there are none."""
        return 0

    @property
    def predicts_ahead(self) -> int:
        """How many tokens besides the next one the model has modules to predict (MTP)."""
        return 0

    def without_mtp(self) -> Self:
        """The same model without those modules."""
        return self

    def fixed(self) -> dict[str, Any]:
        """What config.json may say besides, and then has to say."""
        raise NotImplementedError

    @classmethod
    def absent(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Values of fields that config.json may leave out (or hold null in); other fields have to be there."""
        raise NotImplementedError

    def refuse(self, data: dict[str, Any]) -> None:
        """UserError for what the config.json that this was read from says and the model would not honour: windows."""
        refuse_windows(data, self.num_hidden_layers)

    def to_dict(self) -> dict[str, Any]:
        """The contents of config.json."""
        head = {"architectures": [self.architecture], "model_type": self.model_type, "dtype": "float32"}
        rope = {"rope_scaling": rope_to_dict(self.rope_scaling) if self.rope_scaling else None}
        numbers: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        return head | numbers | rope | self.fixed()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The config for the contents of a config.json of this model type; UserError for what would not be honoured."""
        theta, scaling = read_rope(data, cls.default_theta)
        optional = _OPTIONAL | cls.absent(data)
        known = {f.name for f in fields(cls)} - {"rope_scaling"}  # type: ignore[arg-type]
        values = {key: data[key] for key in known & data.keys() if data[key] is not None or key not in optional}
        values = optional | values | {"rope_theta": theta}
        missing = known - values.keys()
        if missing:
            raise UserError(f"config.json lacks {', '.join(sorted(missing))}.", "Is it the whole file of a checkpoint?")
        config = replace(read_dataclass(cls, values, "config.json"), rope_scaling=scaling)  # type: ignore[type-var]
        config.refuse(data)
        for key, value in (_FOREIGN | config.fixed()).items():
            if key != "use_sliding_window" and data.get(key, value) not in (value, None):
                raise UserError(f"config.json has {key} {data[key]!r}.", f"hadal runs this family with {value!r} only.")
        return config


_OPTIONAL = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "initializer_range": 0.02}
# Keys of other families that change what is computed, with the value at which they do not.
_FOREIGN: dict[str, Any] = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "logits_scaling": 1.0,
    "logit_scale": 1.0,
    "residual_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "attention_multiplier": None,
    "index_topk": None,
}


def refuse_windows(data: dict[str, Any], layers: int) -> None:
    """Sliding windows are in use in some layers, if switched on, with a length, from a layer that there is."""
    kinds = data.get("layer_types") or []
    begin = data.get("max_window_layers")
    in_use = data.get("use_sliding_window") and data.get("sliding_window") is not None
    if any(kind != "full_attention" for kind in kinds):
        raise UserError(f"config.json has layer_types {sorted(set(kinds))}.", "hadal has full attention only.")
    if not kinds and in_use and (not isinstance(begin, int) or begin < layers):
        raise UserError(
            f"config.json has use_sliding_window true, sliding_window {data['sliding_window']!r}.",
            "hadal has full attention only.",
        )


# What a config checks of itself


def check_positive(config: ModelConfig, besides: tuple[str, ...] = ()) -> None:
    """UserError for a number below 1, of the fields `besides` and of floats below 0."""
    for field in fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        least = 0 if field.name in besides or isinstance(value, float) else 1
        if isinstance(value, int | float) and not isinstance(value, bool) and value < least:
            raise UserError(f"{field.name} is {value}.", f"It must be at least {least}.")


def check_fixed(config: ModelConfig) -> None:
    """UserError for a field that is not what the model type has."""
    for key, value in config.fixed().items():
        if getattr(config, key, value) != value:
            raise UserError(f"{key} is {getattr(config, key)!r}.", f"{config.model_type} has {value!r} only.")


def check_divides(config: ModelConfig, part: str, whole: str) -> None:
    """UserError for a number that is not a multiple of another."""
    if getattr(config, whole) % getattr(config, part):
        raise UserError(f"{part} is {getattr(config, part)}, which does not divide {whole} {getattr(config, whole)}.")


def check_even(config: ModelConfig, name: str) -> None:
    """UserError for a width that rotary positions cannot turn."""
    if getattr(config, name) % 2:
        raise UserError(f"{name} is {getattr(config, name)}.", "Rotary positions turn pairs: it must be even.")
