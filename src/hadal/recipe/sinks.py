"""Where a run's metrics also go: wandb, TensorBoard or trackio, if asked for and installed. None of them is needed.

They are told what `metrics.jsonl` says, under `stage/name`. What they keep plays no part in how a run ends, and a run
that is carried on tells it some steps twice.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from hadal.errors import UserError
from hadal.files import JsonLines
from hadal.reading import nearest

Tell = Callable[[dict[str, float], int], None]


def _mark(run: Path) -> str:
    """What tells a run folder from another of the same name."""
    return blake2b(str(run.resolve()).encode(), digest_size=8).hexdigest()


def _wandb(module: Any, run: Path, config: Mapping[str, Any]) -> Tell:
    mark = _mark(run)
    opened = module.init(project="hadal", name=run.name, id=mark, resume="allow", dir=str(run), config=dict(config))
    return lambda values, step: opened.log(values | {"step": step})


def _trackio(module: Any, run: Path, config: Mapping[str, Any]) -> Tell:
    name = f"{run.name}-{_mark(run)[:6]}"  # a run is found again by its name alone
    module.init(project="hadal", name=name, config=dict(config), resume="allow")
    return lambda values, step: module.log(values, step=step)


def _tensorboard(module: Any, run: Path, config: Mapping[str, Any]) -> Tell:
    writer = module.SummaryWriter(str(run / "tensorboard"))

    def tell(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return tell


SINKS: dict[str, tuple[str, Callable[[Any, Path, Mapping[str, Any]], Tell]]] = {
    "wandb": ("wandb", _wandb),
    "tensorboard": ("torch.utils.tensorboard", _tensorboard),
    "trackio": ("trackio", _trackio),
}


def check_sinks(names: Sequence[str]) -> None:
    """UserError for a sink that does not exist or is not installed."""
    for name in names:
        if name not in SINKS:
            raise UserError(f"There is no sink {name!r}.", nearest(name, SINKS))
        try:
            importlib.import_module(SINKS[name][0])
        except ImportError:
            raise UserError(f"{name} is not installed.", f"Install it with pip install {name}.") from None


class ToldLines(JsonLines):
    """JSON lines that sinks are told as well."""

    def __init__(self, path: Path, names: Sequence[str], run: Path, config: Mapping[str, Any]) -> None:
        super().__init__(path)
        self.tell = [SINKS[name][1](importlib.import_module(SINKS[name][0]), run, config) for name in names]

    def append(self, record: dict[str, Any]) -> None:
        super().append(record)
        values = dict(numbers(record, str(record.get("stage", "run"))))
        for tell in self.tell:
            tell(values, int(record.get("step", 0)))


def numbers(record: Mapping[str, Any], where: str) -> Iterator[tuple[str, float]]:
    """The numbers of a record, nested tables included, by path."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{where}/{key}")
        elif isinstance(value, int | float) and not isinstance(value, bool) and key not in ("step", "stage"):
            yield f"{where}/{key}", float(value)
