"""Low-rank adapters (LoRA, arXiv 2106.09685) on the linear layers of any family: attached, merged, saved and loaded.

y = W x + s B A x with a frozen W, A [r, in], B [out, r] and s = alpha / r. hadal joins some released matrices (query,
key and value; gate and up; a layer's experts); each keeps adapters of its own here, so that a folder has PEFT's
layout: adapter_config.json beside adapter_model.safetensors, `base_model.model.<released name>.lora_A.weight`.

Experts are stacked and computed in groups, so their adapters are multiplied out: a layer's adapted stack exists while
it runs. The multi-token prediction module has no adapters, as nothing that opens the folder would know it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hadal.errors import UserError
from hadal.models.blocks import Experts, LowRank
from hadal.models.build import outline
from hadal.models.config import ModelConfig
from hadal.models.decoder import Decoder
from hadal.models.families import family_of
from hadal.models.names import to_released
from hadal.reading import nearest


@dataclass(frozen=True)
class LoraConfig:
    """rank 0 is no adapters; alpha 0 stands for twice the rank; targets are last parts of released names.

    Without targets the family says which (`Family.adapted`): a dense model is adapted in every linear layer but the
    head, a DeepSeek model in its attention.
    """

    rank: int = 0
    alpha: float = 0.0
    dropout: float = 0.0
    targets: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.rank < 0 or not 0 <= self.alpha < math.inf:
            raise UserError(f"lora.rank is {self.rank}, lora.alpha {self.alpha}.", "Neither can be below 0.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout is {self.dropout}.", "It must be at least 0 and below 1.")

    @property
    def scale(self) -> float:
        """What the product of an adapter's two matrices is multiplied with."""
        return (self.alpha or 2 * self.rank) / self.rank

    def targets_of(self, config: ModelConfig) -> list[str]:
        """The matrices to adapt in a model of this config."""
        if self.targets:
            return self.targets
        return [*family_of(config).adapted]


class LoraLinear(nn.Linear, LowRank):
    """A frozen linear layer with adapters on the matrices, `rows` of each, that are joined in it."""

    def __init__(self, base: nn.Linear, rows: dict[str, int], dropout: float) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.rows, self.dropout = rows, dropout
        self.scale: dict[str, float] = {}
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()

    def _factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """All adapters as one: A [R, in], and B [out, R] with the scales in it."""
        down = torch.cat([self.lora_A[part] for part in self.rows if part in self.scale]).to(dtype)
        up = [
            self.lora_B[part].to(dtype) * self.scale[part] if part in self.scale else down.new_zeros(rows, 0)
            for part, rows in self.rows.items()
        ]
        return down, torch.block_diag(*up) if len(up) > 1 else up[0]

    def full_weight(self) -> Tensor:
        down, up = self._factors(self.weight.dtype)
        return self.weight + up @ down

    def forward(self, x_D: Tensor) -> Tensor:
        down, up = self._factors(self.weight.dtype)
        learning = self.training and torch.is_grad_enabled()  # sampling is by the whole adapter, whatever the mode
        dropped = F.dropout(x_D, self.dropout) if self.dropout and learning else x_D
        return super().forward(x_D) + F.linear(F.linear(dropped, down), up)

    def deltas(self) -> dict[str, Tensor]:
        """What merging adds to each frozen tensor, in float32."""
        down, up = self._factors(torch.float32)
        return {"weight": up @ down}


class LoraExperts(nn.Module):
    """The frozen stacked matrices of a layer's experts with adapters: A [E, r, in], B [E, out, r]."""

    def __init__(self, base: Experts) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = base.gate_up_proj, base.down_proj
        self.scale: dict[str, float] = {}
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()

    def _stacks(self) -> dict[str, tuple[nn.Parameter, list[str]]]:
        """The frozen stacks, each with the released matrices that it holds of an expert."""
        return {
            "gate_up_proj": (self.gate_up_proj, ["gate_proj", "up_proj"]),
            "down_proj": (self.down_proj, ["down_proj"]),
        }

    def _delta(self, stack: nn.Parameter, parts: list[str], dtype: torch.dtype) -> Tensor | None:
        if not any(part in self.scale for part in parts):
            return None
        experts, rows, width = stack.shape
        return torch.cat(
            [
                self.scale[part] * (self.lora_B[part].to(dtype) @ self.lora_A[part].to(dtype))
                if part in self.scale
                else stack.new_zeros(experts, rows // len(parts), width, dtype=dtype)
                for part in parts
            ],
            dim=1,
        )

    def matrices(self) -> tuple[Tensor, Tensor]:
        """The adapted stacks."""
        gate_up, down = (
            stack if (delta := self._delta(stack, parts, stack.dtype)) is None else stack + delta
            for stack, parts in self._stacks().values()
        )
        return gate_up, down

    def deltas(self) -> dict[str, Tensor]:
        """What merging adds to each frozen tensor, in float32."""
        found = {name: self._delta(stack, parts, torch.float32) for name, (stack, parts) in self._stacks().items()}
        return {name: delta for name, delta in found.items() if delta is not None}


Adapted = LoraLinear | LoraExperts


@dataclass(frozen=True)
class Site:
    """A released matrix that can be adapted: module's name, the part in it, which expert's (-1: none's), shape."""

    module: str
    part: str
    expert: int
    shape: tuple[int, int]


def sites_of(model: Decoder) -> dict[str, Site]:
    """Every released matrix that can be adapted, by its released name without `.weight`."""
    found: dict[str, Site] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            kinds = {"weight": module.weight}
        elif isinstance(module, Experts | LoraExperts):
            kinds = {kind: getattr(module, kind) for kind in ("gate_up_proj", "down_proj")}
        else:
            continue
        if name.startswith("mtp."):
            continue
        for kind, parameter in kinds.items():
            parts = to_released({f"{name}.{kind}": torch.empty(parameter.shape, device="meta")}, model.config)
            for released, like in parts.items():
                path = released.removesuffix(".weight")
                owner, part = path.rsplit(".", 1) if "." in path else ("", path)
                expert = int(owner.rsplit(".", 1)[1]) if parameter.dim() == 3 else -1
                found[path] = Site(name, part, expert, (like.shape[0], like.shape[1]))
    return found


def with_adapters(model: Decoder, name: str, sites: dict[str, Site], dropout: float) -> Adapted:
    """The module of a name, made one that takes adapters where it is none yet."""
    module = model.get_submodule(name)
    if isinstance(module, LoraLinear | LoraExperts):
        return module
    new: Adapted
    if isinstance(module, Experts):
        if dropout:
            raise UserError("Adapters on experts have no dropout.", "Set lora.dropout to 0, or choose other targets.")
        new = LoraExperts(module)
    else:
        assert isinstance(module, nn.Linear)
        rows = {site.part: site.shape[0] for site in sites.values() if site.module == name}
        new = LoraLinear(module, rows, dropout)
    model.set_submodule(name, new.train(module.training))
    return new


def adapted_modules(model: nn.Module) -> Iterator[tuple[str, Adapted]]:
    """Modules that carry adapters, by name."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear | LoraExperts):
            yield name, module


def _chosen(sites: dict[str, Site], config: ModelConfig, lora: LoraConfig) -> list[Site]:
    """The matrices that a config adapts, in the model's order; UserError for a target that there is not."""
    known = {site.part for site in sites.values()}
    for target in lora.targets:
        if target not in known:
            raise UserError(f"The model has no linear layer {target!r} to adapt.", nearest(target, known))
    wanted = set(lora.targets_of(config))
    return [site for site in sites.values() if site.part in wanted]


def add_adapter(
    module: Adapted, model: Decoder, site: Site, sites: dict[str, Site], rank: int, scale: float
) -> None:
    """Room for an adapter that changes nothing, for all of a layer's experts at once."""
    rows, width = site.shape
    experts = max(s.expert for s in sites.values() if s.module == site.module) + 1
    lead = (experts,) if experts else ()
    module.lora_A[site.part] = nn.Parameter(torch.zeros(*lead, rank, width, dtype=model.dtype))
    module.lora_B[site.part] = nn.Parameter(torch.zeros(*lead, rows, rank, dtype=model.dtype))
    module.scale[site.part] = scale


def attach(model: Decoder, config: LoraConfig, seed: int) -> None:
    """Freeze a model and give it new adapters, which leave it as it is until they are trained (B = 0).

    UserError for a target that the model does not have.
    """
    sites = sites_of(model)
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for site in {(s.module, s.part): s for s in _chosen(sites, model.config, config)}.values():
        module = with_adapters(model, site.module, sites, config.dropout)
        add_adapter(module, model, site, sites, config.rank, config.scale)
        down = module.lora_A[site.part].data
        down.copy_(torch.rand(down.shape, generator=generator).mul_(2).sub_(1).div_(math.sqrt(site.shape[1])))
    model.changed()


def adapter_size(config: ModelConfig, lora: LoraConfig) -> int:
    """How many parameters adapters have on a model of this config, which is not built for it."""
    return sum(lora.rank * sum(site.shape) for site in _chosen(sites_of(outline(config)), config, lora))


def adapted_size(config: ModelConfig, lora: LoraConfig) -> int:
    """How many weights the matrices have that adapters change: those that a `merged_copy` has of its own."""
    sites = sites_of(outline(config))
    changed = {site.module for site in _chosen(sites, config, lora)}
    return sum(site.shape[0] * site.shape[1] for site in sites.values() if site.module in changed)


@torch.no_grad()
def merge(model: Decoder) -> None:
    """Add every adapter to its matrix and take it off: the model is a plain one again, all of it trainable."""
    for name, module in list(adapted_modules(model)):
        own = (module.weight,) if isinstance(module, LoraLinear) else (module.gate_up_proj, module.down_proj)
        for weight, merged in zip(own, merged_matrices(module), strict=True):
            weight.copy_(merged)
        plain: nn.Module
        if isinstance(module, LoraLinear):
            linear = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
            linear.weight, linear.bias = module.weight, module.bias
            plain = linear
        else:
            plain = Experts(module.gate_up_proj, module.down_proj)
        model.set_submodule(name, plain.train(module.training))
    model.requires_grad_(True)
    model.changed()


@torch.no_grad()
def merged_matrices(module: nn.Module) -> tuple[Tensor, ...]:
    """The matrix of a linear layer, or the two stacks of a layer's experts; what has an adapter with it, in float32."""
    kinds = ("weight",) if isinstance(module, nn.Linear) else ("gate_up_proj", "down_proj")
    deltas = module.deltas() if isinstance(module, LoraLinear | LoraExperts) else {}
    own: dict[str, Tensor] = {kind: getattr(module, kind) for kind in kinds}
    return tuple(weight.float() + deltas[kind] if kind in deltas else weight for kind, weight in own.items())


def base_state(model: Decoder) -> dict[str, Tensor]:
    """The state of the frozen model, without adapters."""
    return {name: tensor for name, tensor in model.state_dict().items() if ".lora_" not in name}
