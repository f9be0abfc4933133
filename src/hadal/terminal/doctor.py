"""`hadal doctor`: what works on this machine, what does not, and the remedy.

Works without torch, since a broken torch is what people call a doctor for.
"""

from __future__ import annotations

import importlib
import json as jsonlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hadal.machine.cores import cores
from hadal.machine.memory import available_memory, container_limit

MEASURED_SECONDS = 1.0  # of matrix products, all of them together
MEMORY_NEEDED = 3e9  # a quickstart stays under 2 GB; the rest is the system's
DISK_NEEDED = 1e9


@dataclass(frozen=True)
class Finding:
    """One line of the report. `state` is ok, note (works, could be better) or missing (hadal cannot run)."""

    name: str
    state: str
    text: str
    remedy: str = ""


def doctor(json: bool = False) -> int:
    """Print the report; status 1 where something that hadal needs is missing."""
    findings: list[Finding] = []
    for finding in examine():
        findings.append(finding)
        if not json:
            print(f"{finding.state:<8} {finding.name:<9} {finding.text}", flush=True)
            if finding.remedy:
                print(f"{'':<18} -> {finding.remedy}", flush=True)
    missing = any(finding.state == "missing" for finding in findings)
    if json:
        print(
            jsonlib.dumps(
                {"doctor": 1, "works": not missing, "findings": [asdict(each) for each in findings]}
            )
        )
    else:
        print(
            "Something is missing; see the arrows."
            if missing
            else "hadal runs here. Begin with: hadal quickstart"
        )
    return int(missing)


NEEDED = ("numpy", "safetensors", "tokenizers", "rich", "jinja2", "fastapi", "uvicorn", "sqlalchemy", "httpx")


def examine() -> Iterator[Finding]:
    """All findings, the slow ones last."""
    yield python()
    yield memory()
    yield disk(Path.cwd())
    yield terminal()
    yield sandbox()
    for package in NEEDED:
        if (error := import_error(package)) is not None:
            yield Finding(package, "missing", error, reinstall())
    if (error := import_error("torch")) is not None:
        yield Finding("torch", "missing", error, reinstall())
        return
    import torch

    yield Finding("torch", "ok", torch.__version__)
    yield gpu(torch)
    yield from speed(torch)
    yield exactness(torch)


def reinstall() -> str:
    root = Path(__file__).resolve().parents[3]
    if (root / "hadal").is_file():
        return f"remove {root / '.venv'} and run {root / 'hadal'} doctor: it installs everything anew"
    return "pip install --force-reinstall hadal"


def import_error(name: str) -> str | None:
    """Why a package cannot be imported. A broken binary raises OSError, a missing one ImportError."""
    try:
        importlib.import_module(name)
    except (ImportError, OSError) as error:
        return f"cannot be imported: {error}".splitlines()[0]
    return None


def python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def memory() -> Finding:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, available = container_limit(), available_memory() or total
    text = f"{available / 1e9:.1f} GB available of {total / 1e9:.1f} GB"
    if limit is not None and limit < total:
        text += f", the container is held to {limit / 1e9:.1f} GB"
    if available < MEMORY_NEEDED:
        return Finding("memory", "note", text, "close other programs: a quickstart takes up to 2 GB")
    return Finding("memory", "ok", text)


def disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e9:.1f} GB free in {folder}"
    if not os.access(folder, os.W_OK):
        return Finding("disk", "note", f"{folder} may not be written", "go to another folder or use --out")
    if free < DISK_NEEDED:
        return Finding("disk", "note", text, "free some space: a run folder takes up to 1 GB")
    return Finding("disk", "ok", text)


def terminal() -> Finding:
    if not sys.stdout.isatty():
        return Finding("terminal", "ok", "none on stdout: progress comes as plain lines")
    size = shutil.get_terminal_size()
    colour = "no colour (NO_COLOR)" if os.environ.get("NO_COLOR") else "colour"
    text = f"{size.columns} x {size.lines}, {colour}, {sys.stdout.encoding}"
    if sys.stdout.encoding.lower().replace("-", "") != "utf8":
        return Finding("terminal", "note", text, "set a UTF-8 locale, such as LANG=C.UTF-8, to see all signs")
    if size.columns < 60:
        return Finding("terminal", "note", text, "a window of 80 columns shows the live view whole")
    return Finding("terminal", "ok", text)


def sandbox() -> Finding:
    """What can hold programs that a model wrote."""
    from hadal.sandbox.layers import available, chosen, isolates

    text = ", ".join(chosen()) or "no layer"
    missing = "; ".join(f"{layer}: {reason}" for layer, reason in available().items() if reason)
    if isolates(chosen()):
        return Finding("sandbox", "ok", f"programs are held by {text}")
    remedy = f"rewards for code need a sandbox service or an explicit permission here ({missing})"
    return Finding("sandbox", "note", f"{text}: not enough to run programs that nobody trusts", remedy)


def gpu(torch: Any) -> Finding:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        return Finding("gpu", "ok", f"{', '.join(names)}, {memory:.0f} GB, CUDA {torch.version.cuda}")
    if torch.backends.mps.is_available():
        return Finding("gpu", "ok", "Apple GPU (MPS); hadal computes on the CPU here")
    seen = nvidia_gpu()
    if seen is None:
        return Finding("gpu", "ok", "none, and none is needed")
    if torch.version.cuda is None:
        remedy = (
            "this torch is the CPU build; install torch's CUDA build into the same environment to use the GPU"
        )
    else:
        remedy = f"torch was built for CUDA {torch.version.cuda}; a newer driver may be needed"
    return Finding("gpu", "note", f"{seen} is here, but torch does not see it", remedy)


def nvidia_gpu() -> str | None:
    """The name of an NVIDIA GPU that its driver knows, whatever torch says."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    question = [command, "--query-gpu=name", "--format=csv,noheader"]
    try:
        asked = subprocess.run(question, capture_output=True, text=True, timeout=10)
    except subprocess.TimeoutExpired:
        return "an NVIDIA GPU whose driver does not answer"
    return asked.stdout.strip().splitlines()[0] if asked.returncode == 0 and asked.stdout.strip() else None


def speed(torch: Any) -> Iterator[Finding]:
    from hadal.machine.speed import fastest_dtype, matmul_rates

    threads = torch.get_num_threads()
    rates = matmul_rates(MEASURED_SECONDS * (2 / 3 if threads > 1 else 1))
    text = f"{threads} in use, {cores()} cores"
    single: dict[str, float] = {}
    if threads > 1:
        torch.set_num_threads(1)
        single = matmul_rates(MEASURED_SECONDS / 3)
        torch.set_num_threads(threads)
    dtype = fastest_dtype(rates)
    if single and single[dtype] > rates[dtype]:
        remedy = "another program keeps a core busy; close it, or give hadal fewer threads with --threads"
        yield Finding("threads", "note", f"{text}, and one alone is faster than all", remedy)
    else:
        yield Finding("threads", "ok", text)
    measured = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items())
    yield Finding("speed", "ok", f"{measured}: hadal computes in {dtype}")


def exactness(torch: Any) -> Finding:
    """Whether the engine's promise holds here, for a dense model and one of experts, in each dtype that is fast."""
    from hadal.engine.promise import REMEDY, inexact
    from hadal.machine.speed import fastest_dtype, matmul_rates
    from hadal.models.build import build
    from hadal.models.deepseek.config import DeepseekConfig
    from hadal.models.dense.config import DenseConfig

    dtypes = dict.fromkeys(("float32", fastest_dtype(matmul_rates(MEASURED_SECONDS / 5))))
    dense = DenseConfig(512, 896, 1, 14, 2, head_dim=64, intermediate_size=2304)
    for config in (dense, DeepseekConfig(512, 128, 2, 4, 384, 128)):
        model = build(config)
        model.initialise(0)
        for dtype in dtypes:
            if reason := inexact(model.to(getattr(torch, dtype))):
                text = f"what is sampled may depend on what runs beside it: {reason}"
                return Finding("exactness", "note", text, REMEDY)
    where = f"{' and '.join(dtypes)} on {torch.get_num_threads()} threads"
    return Finding("exactness", "ok", f"what is sampled does not depend on what runs beside it, in {where}")
