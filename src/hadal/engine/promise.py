"""Whether this machine keeps the engine's promise that a request's bits do not depend on its company, found by trying.

Linear layers are tried at their own shapes (`hadal.ops.linear.keeps_rows`). What else a token meets is tried by running
one layer of each kind: a row alone and read in pieces, against the same row beside others and read at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hadal.engine.kv.buckets import Bucket, CacheView, bucket_size
from hadal.models.decoder import Decoder
from hadal.models.packed import PackedExperts, PackedLinear, beside, stable_in
from hadal.ops.exact import exactly, padded_rows
from hadal.ops.linear import FORMS, Sized, keeps_rows

ROWS, TOKENS, PIECE = 2, 149, 48  # more tokens than attention adds up in one piece; the last five are decoded
REMEDY = (
    "leave MKL_CBWR unset, and call hadal.machine.environment.prepare() where a program of yours imports torch itself; "
    "for bfloat16 on a CPU with AMX, set ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16"
)


@torch.no_grad()
def inexact(model: Decoder) -> str:
    """What depends on company on this machine, in words; empty where nothing was found that does.

    It depends on torch's number of threads, and takes some tens of milliseconds, of a large model a fifth of a second.
    Of CPUs alone: on a GPU nothing is tried.
    """
    if model.device.type != "cpu":
        return ""
    threads = torch.get_num_threads()
    for form, O, K in sorted(_matrices(model)):
        if not keeps_rows(form, (O, K), threads):
            return f"{form} products of {O} x {K} give a row other bits beside other rows, whatever their number"
    shell = beside(model).eval()
    shell.layers = nn.ModuleList(shell.layers[index] for index in model.distinct_layers())
    with exactly(True):
        ids = torch.arange(ROWS * TOKENS).view(ROWS, TOKENS) % model.config.vocab_size
        pieces = [PIECE] * (TOKENS // PIECE) + [1] * (TOKENS % PIECE)
        kept = torch.equal(_run(shell, ids[-1:], pieces)[0], _run(shell, ids, [TOKENS])[-1])
    return "" if kept else f"attention in {model.dtype} gives a row other bits beside other rows".replace("torch.", "")


def _matrices(model: Decoder) -> set[Sized]:
    """All that a token may be multiplied with."""
    form = f"{model.dtype}:plain".removeprefix("torch.")
    plain = {(form, *p.shape[-2:]) for p in model.parameters() if p.dim() > 1}
    if model.packed_head is None:
        return plain if form in FORMS else set()
    linears = [block for m in model.modules() if isinstance(m, PackedLinear) for block in m.blocks]
    stacks = [stack for m in model.modules() if isinstance(m, PackedExperts) for stack in m.stacks]
    return {(m.form, *m.shape) for m in (*linears, *(stack.matrices[0] for stack in stacks))}


def _run(model: Decoder, ids_BT: Tensor, pieces: Sequence[int]) -> Tensor:
    """Hidden states [B, T, D] of rows that are read in pieces of so many tokens, as the engine computes them."""
    (B, T), stable = ids_BT.shape, stable_in(model)
    bucket = Bucket(bucket_size(T), model.cache_widths(), model.norm.weight)
    bucket.resize(B)
    out: list[Tensor] = []
    begin = 0
    for part in ids_BT.split(list(pieces), 1):
        tokens = part.shape[1]
        spare = padded_rows(B, tokens, stable) - B
        view = CacheView([bucket], [torch.full((B,), begin)], model.config.max_position_embeddings, True, spare)
        out.append(model(torch.cat([part, part.new_zeros(spare, tokens)]), view)[:B])
        begin += tokens
    return torch.cat(out, 1)
