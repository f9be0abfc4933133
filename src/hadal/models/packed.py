"""A decoder whose linear layers are packed for inference (`hadal.ops.linear`): the same modules, other matrices.

`pack` takes a model over and frees each plain matrix as soon as it is packed. `packed_copy` leaves a trainer's model
as it is and shares with it everything that is no matrix; `merged_copy` shares every frozen matrix as well, and merges
adapters into packed ones of its own. `repack` brings either up to date after an update. `choose` finds the form that is
fastest on this machine. All this is for CPUs; on a GPU matrices stay plain.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hadal.errors import UserError
from hadal.models.blocks import Experts
from hadal.models.build import outline
from hadal.models.config import ModelConfig
from hadal.models.decoder import Decoder
from hadal.models.families import family_of
from hadal.models.lora import LoraExperts, LoraLinear, merged_matrices
from hadal.ops import quant
from hadal.ops.heap import give_back
from hadal.ops.linear import FORMS, Matrix, Sized, Stack, kind_of, measure, rows_alike, usable, works

T = TypeVar("T")
R = TypeVar("R")

BLOCK = 1 << 24
"""Weights that are packed at a time, so that what packing needs for itself stays small beside a vocabulary's head."""
ROWS = 128
"""Rows that a block is multiplied with at a time: what comes of it is copied to its place out of the caches, and takes
no memory that the system has to make anew each time: a seventh of a vocabulary's head at 512 rows."""
MEASURED = 16_000_000
"""Weights that `choose` multiplies with: more than most caches hold."""


class PackedLinear(nn.Module):
    """A linear layer over packed matrices; the result has the dtype of what it is given, or `out`."""

    def __init__(
        self, form: str, weight_OK: Tensor, bias: nn.Parameter | None, fast: bool, out: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.form, self.bias, self.fast, self.out = FORMS[form], bias, fast, out
        self.repack(weight_OK)

    def repack(self, weight_OK: Tensor) -> None:
        """Take another matrix of the same shape."""
        self.out_features, self.in_features = weight_OK.shape
        self.blocks = _on_all_threads(self.form, weight_OK.chunk(math.ceil(weight_OK.numel() / BLOCK)))

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self.blocks)

    @property
    def weight(self) -> Tensor:
        """The matrix [O, K], where the form keeps it as it is."""
        return torch.cat([block.dense() for block in self.blocks]) if len(self.blocks) > 1 else self.blocks[0].dense()

    def forward(self, x_D: Tensor) -> Tensor:
        x = x_D.to(self.form.dtype) if self.form.leading else x_D.reshape(-1, self.in_features).to(self.form.dtype)
        bias = None if self.bias is None else self.bias.to(self.form.dtype)
        dtype = self.out or x_D.dtype
        if len(self.blocks) > 1:
            y = self._by_blocks(x.reshape(-1, self.in_features), bias, dtype)
            return y.view(*x_D.shape[:-1], self.out_features)
        y = self._multiply(self.blocks[0], x, bias).to(dtype)
        return y if self.form.leading else y.view(*x_D.shape[:-1], y.shape[1])

    def _by_blocks(self, x_NK: Tensor, bias_O: Tensor | None, dtype: torch.dtype) -> Tensor:
        y_NO = x_NK.new_empty(len(x_NK), self.out_features, dtype=dtype)
        columns = y_NO.chunk(len(self.blocks), dim=1)
        biases = [None] * len(columns) if bias_O is None else bias_O.chunk(len(columns))
        for block, place_NC, bias_C in zip(self.blocks, columns, biases, strict=True):
            for x, place in zip(x_NK.split(ROWS), place_NC.split(ROWS), strict=True):
                place.copy_(self._multiply(block, x, bias_C))
        return y_NO

    def _multiply(self, block: Matrix, x: Tensor, bias_O: Tensor | None) -> Tensor:
        return block(x, bias_O) if self.fast else block.rows(x, bias_O)


class PackedExperts(nn.Module):
    """The routed experts' matrices, each packed."""

    def __init__(self, form: str, matrices: Sequence[Tensor], fast: bool) -> None:
        super().__init__()
        self.form, self.fast = FORMS[form], fast
        self.repack(matrices)

    def repack(self, matrices: Sequence[Tensor]) -> None:
        """Take other matrices of the same shapes: gate and up [E, 2I, D], and down [E, D, I]."""
        gate_up, down = matrices
        self.stacks = Stack(self.form, gate_up, self.fast), Stack(self.form, down, self.fast)

    @property
    def nbytes(self) -> int:
        return sum(stack.nbytes for stack in self.stacks)

    def matrices(self) -> tuple[Stack, Stack]:
        return self.stacks


class Lookup(nn.Module):
    """An embedding that is stored in a narrower dtype than the model computes in."""

    def __init__(self, weight: Tensor, out: torch.dtype) -> None:
        super().__init__()
        self.weight, self.out = nn.Parameter(weight, requires_grad=False), out

    def forward(self, ids_BT: Tensor) -> Tensor:
        return F.embedding(ids_BT, self.weight).to(self.out)


# Packing


@dataclass(frozen=True)
class Repacked:
    """What packing took: the packed matrices' bytes, and seconds."""

    nbytes: int
    seconds: float


@torch.no_grad()
def pack(model: Decoder, form: str, head: str | None = None, fast: bool = False) -> Repacked:
    """Pack a model's linear layers in place, for inference from now on; every plain matrix is freed as it goes.

    form: a kind (float32, bfloat16, float16, int8, int4) or a form's whole name, as `choose` gives it. The model then
    computes in bf16 for bfloat16 and in float32 otherwise; load it in the checkpoint's own dtype, so that nothing is
    ever held in a wider one. head: another form for the head; int4 models get an int8 one if nothing is said.
    fast: operators may take an order of addition that depends on how many rows there are. What attention multiplies
    with itself (`Family.plain`) stays plain.
    """
    form = resolve(form)
    head = resolve(head or ("int8" if kind_of(form) == "int4" else form))
    if model.device.type != "cpu" and not (form.endswith(":plain") and head.endswith(":plain")):
        raise UserError(f"{form} is a form for CPUs, and the model is on {model.device}.", "Leave it plain there.")
    compute = torch.float32 if kind_of(form) in quant.KINDS else FORMS[form].dtype
    return _pack(model, lambda _: form, head, compute, fast)


def _pack(
    model: Decoder, form_of: Callable[[nn.Module], str], head: str, compute: torch.dtype, fast: bool
) -> Repacked:
    began = time.perf_counter()
    _pack_modules(model, form_of, compute, fast)
    wide = torch.promote_types(compute, torch.float32)
    model.packed_head = PackedLinear(head, _head_weight(model), None, fast, out=wide)
    if not model.config.tie_word_embeddings:
        del model.head
    _cast(model, compute)
    give_back()
    model.requires_grad_(False).eval()
    model.changed()
    return Repacked(packed_bytes(model), time.perf_counter() - began)


def packed_copy(model: Decoder, form: str, head: str | None = None, fast: bool = False) -> tuple[Decoder, Repacked]:
    """A packed model beside a plain one, with which it shares norms and embedding; arguments as for `pack`."""
    shell = beside(model)
    return shell, pack(shell, form, head, fast)


def beside(model: Decoder) -> Decoder:
    """A model of the same tensors, in which modules can be replaced without a trace in the first."""
    shell = _shell(model)
    assert isinstance(shell, Decoder)
    return shell


@torch.no_grad()
def merged_copy(model: Decoder) -> Decoder:
    """A model to sample from beside one with adapters, which takes no longer than one without: each is merged into a
    matrix of the copy's own, in float32 and then rounded to the model's dtype. All that is frozen the two share."""
    kind = str(model.dtype).removeprefix("torch.")
    plain = f"{kind}:plain"
    form = resolve(kind) if model.device.type == "cpu" else plain

    def form_of(module: nn.Module) -> str:
        return form if isinstance(module, LoraLinear | LoraExperts) else plain

    shell = beside(model)
    head = plain if model.config.tie_word_embeddings else form_of(model.head)
    _pack(shell, form_of, head, model.dtype, fast=False)
    return shell


@torch.no_grad()
def repack(packed: Decoder, model: Decoder) -> Repacked:
    """Bring a packed model's weights up to those of a plain one of the same shape, in place; plain matrices that the
    two share cost nothing."""
    began = time.perf_counter()
    for name, module in packed.named_modules():
        if name == "packed_head":
            module.repack(_head_weight(model))
        elif isinstance(module, PackedLinear):
            module.repack(merged_matrices(model.get_submodule(name))[0])
        elif isinstance(module, PackedExperts):
            module.repack(merged_matrices(model.get_submodule(name)))
    theirs = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, ours in (*packed.named_parameters(), *packed.named_buffers()):
        if ours.data_ptr() != theirs[name].data_ptr():
            ours.copy_(theirs[name])
    packed.changed()
    return Repacked(packed_bytes(packed), time.perf_counter() - began)


def packed_bytes(model: nn.Module) -> int:
    """Bytes of a model's packed matrices."""
    return sum(module.nbytes for module in model.modules() if isinstance(module, PackedLinear | PackedExperts))


def matrices_in(model: Decoder) -> tuple[Sized, ...]:
    """The matrices that every token is multiplied with in the layers, and in a plain model's head."""
    if model.packed_head is not None:
        linears = [module for module in model.layers.modules() if isinstance(module, PackedLinear)]
        return tuple(sorted({(block.form, *block.shape) for module in linears for block in module.blocks}))
    form = f"{model.dtype}:plain".removeprefix("torch.")
    flat = [parameter.shape for parameter in model.parameters() if parameter.dim() == 2]
    return tuple(sorted({(form, O, K) for O, K in flat})) if form in FORMS else ()


def stable_in(model: Decoder) -> Callable[[int], int]:
    """For a count of a step's tokens, the next one at which no linear layer has to add rows to be exact.

    A packed model with experts takes any: tokens that nobody asked for would have experts read that nobody needs.
    """
    matrices = matrices_in(model)
    if model.packed_head is not None:
        experts = any(isinstance(module, PackedExperts) for module in model.modules())
        if experts or len({form for form, *_ in matrices}) > 1:
            return lambda count: count
    return partial(rows_alike, matrices, cut=model.packed_head is not None)


def resolve(form: str) -> str:
    """The whole name of a form that works here; of a kind, the first operator that does, or the plain form."""
    if form in FORMS and works(form):
        return form
    kind = kind_of(form)
    found = usable(kind)
    if not found:
        raise UserError(f"There is no form {form!r} of weights.", f"Use one of: {', '.join(FORMS)}.")
    if form != kind:
        raise UserError(f"torch {torch.__version__} has no {form} on this machine.", f"Use {' or '.join(found)}.")
    return found[min(1, len(found) - 1)]


def _head_weight(model: Decoder) -> Tensor:
    return model.embed.weight if model.config.tie_word_embeddings else merged_matrices(model.head)[0]


def _pack_modules(
    model: Decoder, form_of: Callable[[nn.Module], str], compute: torch.dtype, fast: bool
) -> None:
    """Replace linear layers and stacks of experts; side by side, since packing one is a loop of one thread."""
    kept = family_of(model.config).plain

    def replace_one(place: tuple[nn.Module, str]) -> None:
        parent, name = place
        child = getattr(parent, name)
        if isinstance(child, Experts | LoraExperts):
            setattr(parent, name, PackedExperts(form_of(child), merged_matrices(child), fast))
        else:
            chosen = f"{compute}:plain".removeprefix("torch.") if name in kept else form_of(child)
            setattr(parent, name, PackedLinear(chosen, merged_matrices(child)[0], child.bias, fast))
        del child
        give_back()

    _on_all_threads(replace_one, list(_places(model)))


def _places(parent: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Where there is something to pack, as parent and name; not the head, which may be the embedding as well."""
    for name, child in parent.named_children():
        if isinstance(child, nn.Linear) and isinstance(parent, Decoder):
            continue
        if isinstance(child, Experts | LoraExperts | nn.Linear):
            yield parent, name
        else:
            yield from _places(child)


def _on_all_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    if len(items) == 1:
        return [function(items[0])]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(function, items))


def _cast(module: nn.Module, compute: torch.dtype) -> None:
    """Bring what was not packed to the dtype that the model computes in; routers know their own."""
    for name, child in module.named_children():
        if isinstance(child, nn.Embedding) and child.weight.dtype.itemsize < compute.itemsize:
            setattr(module, name, Lookup(child.weight.detach(), compute))
        elif not getattr(child, "keeps_dtype", False):
            _cast(child, compute)
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.dtype != compute:
            setattr(module, name, nn.Parameter(parameter.detach().to(compute), requires_grad=False))


def _shell(module: nn.Module) -> nn.Module:
    """A module of the same tensors, in which modules can be replaced without a trace in the first."""
    shell = copy.copy(module)
    shell._parameters = {  # parameters of its own, that share their values: gradients stay with the first
        name: None if p is None else nn.Parameter(p.detach(), requires_grad=False)
        for name, p in module._parameters.items()
    }
    shell._buffers = dict(module._buffers)
    shell._modules = {name: None if child is None else _shell(child) for name, child in module._modules.items()}
    return shell


# Choosing


@dataclass(frozen=True)
class Choice:
    """A form for `pack`, which a config can keep, and a line that says why."""

    form: str
    reason: str


def choose(
    config: ModelConfig,
    checkpoint: torch.dtype,
    kind: str = "auto",
    rows: Sequence[int] = (1, 64),
    seconds: float = 0.6,
    fast: bool = False,
) -> Choice:
    """The form that multiplies fastest here with matrices of this model's shapes, by a measurement of about a second.

    checkpoint: the dtype of the weights' file. kind: "auto" for all that lose nothing (bfloat16 and float16 for
    checkpoints in bf16, float16 for those in float16, float32 for all), or one kind. rows: tokens of a step, that
    count equally. seconds: of the measurement, which every form gets two turns in. fast: as for `pack`.
    """
    kinds = _FULL_QUALITY.get(checkpoint, ("float32",)) if kind == "auto" else (kind,)
    forms = [form for k in kinds for form in _candidates(k)]
    if not forms:
        raise UserError(f"There is no kind {kind!r} of weights.", "Use auto, float32, bfloat16, float16, int8, int4.")
    if len(forms) == 1:
        return Choice(forms[0], f"Weights as {forms[0]}: nothing else of their quality works here.")
    times = measure(forms, linear_shapes(config), rows, seconds, fast)
    best, *others = times
    slower = "; ".join(
        f"{form} takes {' and '.join(f'{t / b:.1f}x' for t, b in zip(times[form], times[best], strict=True))}"
        for form in others
    )
    counts = " and ".join(map(str, rows)) + (" row" if list(rows) == [1] else " rows")
    fastest = "the fastest here of full quality" if kind == "auto" else "the fastest of its kind here"
    if any(t < 0.95 * b for form in others for t, b in zip(times[form], times[best], strict=True)):
        fastest += " in the mean"
    return Choice(best, f"Weights as {best}, {fastest}; with {counts} {slower}.")


_FULL_QUALITY = {
    torch.bfloat16: ("float32", "bfloat16", "float16"),
    torch.float16: ("float32", "float16"),
}


def _candidates(kind: str) -> list[str]:
    """Forms worth measuring: a plain one that multiplies weights out each time never is, beside another."""
    forms = usable(kind)
    return forms[1:] if len(forms) > 1 and kind not in ("float32", "bfloat16") else forms


def linear_shapes(config: ModelConfig) -> list[tuple[int, int]]:
    """[O, K] of the matrices that a token visits, layer by layer, as far as `MEASURED` goes; the head left out."""
    shapes: list[tuple[int, int]] = []
    for name, module in outline(config).named_modules():
        if isinstance(module, nn.Linear) and name != "head":
            shapes.append((module.out_features, module.in_features))
        elif isinstance(module, Experts):
            visited = range(config.experts_per_token)
            shapes += [(stack.shape[1], stack.shape[2]) for stack in module.matrices() for _ in visited]
    left = MEASURED
    taken: list[tuple[int, int]] = []
    for O, K in shapes:
        if O * K > left and taken:
            break
        taken.append((min(O, max(1, left // K)), K))
        left -= O * K
    return taken
