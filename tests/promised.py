"""Where bits may depend on company, tests of the promise are skipped; where the promise was measured to hold, never."""

from __future__ import annotations

import os

import pytest
import torch

from hadal.engine.promise import inexact
from hadal.machine import environment
from hadal.models.decoder import Decoder
from hadal.ops.linear import keeps_rows


def cpu() -> dict[str, str]:
    """What the system says of its first CPU."""
    lines = environment.CPUINFO.read_text(errors="replace").splitlines() if environment.CPUINFO.exists() else []
    pairs = [line.partition(":") for line in lines]
    return {name.strip(): value.strip() for name, _, value in reversed(pairs)}


def was_measured() -> bool:
    """AMD's Zen 3 to 5 on one thread and two, with every setting of the libraries as it comes.

    Of Intel's CPUs only MKL's part was (docs/log.md): where one breaks the promise, its owner's tests must not fail.
    """
    own = ("MKL_CBWR", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
    if any(name in os.environ for name in own) or torch.get_num_threads() > 2:
        return False
    return (cpu().get("vendor_id"), cpu().get("cpu family")) in (("AuthenticAMD", "25"), ("AuthenticAMD", "26"))


def skip(reason: str) -> None:
    assert not was_measured(), reason
    pytest.skip(reason)


def needs_promise(model: Decoder) -> None:
    """Skips a test where the engine promises nothing of a model on the threads that torch has now."""
    if reason := inexact(model):
        skip(reason)


def needs_rows(form: str, *shape: int) -> None:
    """Skips a test where rows of such a product depend on each other whatever is done."""
    if not keeps_rows(form, (shape[0], shape[1]), torch.get_num_threads()):
        skip(f"{form} products of {shape[0]} x {shape[1]} give a row other bits beside other rows here")
