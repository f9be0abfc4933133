"""How rotary positions are stretched beyond the length a model was trained on, as numbers only.

config.json has two forms: `rope_theta` beside `rope_scaling` (transformers 4, the released files), and both in
one `rope_parameters` (transformers 5). Both are read; the first is written, which every reader knows.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from hadal.errors import UserError
from hadal.reading import read_dataclass


def yarn_mscale(factor: float, weight: float) -> float:
    """The growth of attention's scale with the stretch: 0.1 * weight * ln(factor) + 1 (arXiv 2309.00071, eq. 22)."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


@dataclass(frozen=True)
class YarnScaling:
    """YaRN: slow rotations are stretched by `factor`, fast ones kept, with a ramp between (arXiv 2309.00071).

    `beta_fast` and `beta_slow` are the ramp's ends in turns over the original length.
    """

    rope_type: ClassVar[str] = "yarn"

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    truncate: bool = True

    @property
    def rotary_factor(self) -> float:
        """What cos and sin are multiplied by; with it the rotated part of every score by its square."""
        if self.attention_factor is not None:
            return self.attention_factor
        mscale = 1.0 if self.mscale is None else self.mscale
        return yarn_mscale(self.factor, mscale) / yarn_mscale(self.factor, self.mscale_all_dim or 0.0)

    @property
    def softmax_factor(self) -> float:
        """What the DeepSeek family multiplies the softmax scale by, besides."""
        return yarn_mscale(self.factor, self.mscale_all_dim or 0.0) ** 2


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1: wavelengths beyond original/low_freq_factor stretched, those below original/high_freq_factor kept."""

    rope_type: ClassVar[str] = "llama3"

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    rotary_factor: ClassVar[float] = 1.0


RopeScaling = YarnScaling | Llama3Scaling


@dataclass(frozen=True)
class Rope:
    """Rotary positions of `dim` channels with a base, and how they are stretched (arXiv 2104.09864)."""

    dim: int
    theta: float
    scaling: RopeScaling | None = None


def rope_to_dict(scaling: RopeScaling) -> dict[str, Any]:
    """The `rope_scaling` entry of config.json; `type` is the older name of `rope_type`, which released code reads."""
    numbers = {key: value for key, value in asdict(scaling).items() if value is not None}
    if numbers.get("truncate"):
        del numbers["truncate"]  # the default, and a newer key than most readers
    return {"rope_type": scaling.rope_type, "type": scaling.rope_type} | numbers


def read_rope(data: dict[str, Any], default: float = 10_000.0) -> tuple[Any, RopeScaling | None]:
    """(rope_theta, scaling) of a config.json in either form; UserError for a kind that hadal does not have.

    default: the base where none is given.
    """
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"config.json has the rope scaling {rope!r}.", "It must be an object.")
    theta = rope.get("rope_theta", data.get("rope_theta"))
    partial = rope.get("partial_rotary_factor", data.get("partial_rotary_factor"))
    if partial not in (None, 1.0):
        raise UserError(f"config.json has partial_rotary_factor {partial!r}.", "hadal rotates whole heads only.")
    kind = rope.get("rope_type", rope.get("type")) or "default"
    numbers = {
        key: value
        for key, value in rope.items()
        if key not in ("rope_theta", "rope_type", "type", "partial_rotary_factor") and value is not None
    }
    scaling: RopeScaling | None = None
    if kind == "yarn":
        scaling = read_dataclass(YarnScaling, numbers, "config.json: rope_scaling")
    elif kind == "llama3":
        scaling = read_dataclass(Llama3Scaling, numbers, "config.json: rope_scaling")
    elif kind != "default":
        raise UserError(f"config.json asks for rope scaling {kind!r}.", "hadal has default, yarn and llama3.")
    if scaling is not None:
        least = {"original_max_position_embeddings": 1, "factor": 1.0}
        for name, value in asdict(scaling).items():
            if isinstance(value, int | float) and not isinstance(value, bool) and value < least.get(name, 0):
                raise UserError(
                    f"config.json: rope_scaling.{name} is {value}.", f"It must be at least {least.get(name, 0)}."
                )
        if isinstance(scaling, Llama3Scaling) and scaling.high_freq_factor <= scaling.low_freq_factor:
            raise UserError("config.json: rope_scaling.high_freq_factor must be above low_freq_factor.")
    return default if theta is None else theta, scaling
