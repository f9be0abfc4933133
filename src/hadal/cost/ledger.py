"""The ledger: what each stage used, one JSON object a line, appended and never rewritten.

A stage that was stopped and carried on leaves one record for each part, so sums over the file
are what the machine really spent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from hadal.cost.prices import LAPTOP, HourPrice
from hadal.errors import UserError
from hadal.machine.memory import peak_memory_bytes

VERSION = 1


@dataclass(frozen=True)
class LedgerRecord:
    """What one stage used. `ledger` is the version of these fields."""

    stage: str
    tokens_trained: int
    tokens_sampled: int
    flops: float
    seconds: float
    peak_memory_bytes: int
    cost_usd: float
    price_per_hour: float
    price_source: str
    ledger: int = VERSION

    @classmethod
    def priced(
        cls,
        stage: str,
        *,
        seconds: float,
        flops: float = 0.0,
        tokens_trained: int = 0,
        tokens_sampled: int = 0,
        price: HourPrice = LAPTOP,
    ) -> LedgerRecord:
        """A record of this process: its time at `price`, and its peak memory so far."""
        return cls(
            stage=stage,
            tokens_trained=tokens_trained,
            tokens_sampled=tokens_sampled,
            flops=flops,
            seconds=seconds,
            peak_memory_bytes=peak_memory_bytes(),
            cost_usd=price.cost(seconds),
            price_per_hour=price.usd,
            price_source=f"{price.source} ({price.date})",
        )


class Ledger:
    """A file of records. A last line that was cut off by a kill is dropped by the next append."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def append(self, record: LedgerRecord) -> None:
        """Write one record and have it on the disk before returning."""
        line = json.dumps(asdict(record)).encode() + b"\n"
        with open(self.path, "ab+") as file:
            file.truncate(self._whole_bytes())
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[LedgerRecord]:
        """All records; a file that is not there has none."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes()[: self._whole_bytes()].splitlines()
        return [self._parse(number, line) for number, line in enumerate(lines, 1)]

    def _whole_bytes(self) -> int:
        return self.path.read_bytes().rfind(b"\n") + 1

    def _parse(self, number: int, line: bytes) -> LedgerRecord:
        try:
            values = json.loads(line)
            version = values.get("ledger")
        except (ValueError, AttributeError):
            raise UserError(
                f"{self.path} is damaged at line {number}.", "Remove that line to read the rest."
            ) from None
        if version != VERSION:
            raise UserError(
                f"{self.path} is of ledger version {version}, and this hadal reads version {VERSION}.",
                "Use the hadal that wrote it.",
            )
        known = {field.name for field in fields(LedgerRecord)}
        if set(values) != known:
            odd = ", ".join(sorted(set(values) ^ known))
            raise UserError(
                f"{self.path} is damaged at line {number}: {odd}.", "Remove that line to read the rest."
            )
        return LedgerRecord(**values)


def totals(records: Iterable[LedgerRecord], stage: str = "total") -> LedgerRecord:
    """Sums over records, the highest of their peaks, and every price that they used."""
    records = list(records)
    seconds = sum(record.seconds for record in records)
    cost = sum(record.cost_usd for record in records)
    return LedgerRecord(
        stage=stage,
        tokens_trained=sum(record.tokens_trained for record in records),
        tokens_sampled=sum(record.tokens_sampled for record in records),
        flops=sum(record.flops for record in records),
        seconds=seconds,
        peak_memory_bytes=max((record.peak_memory_bytes for record in records), default=0),
        cost_usd=cost,
        price_per_hour=cost / seconds * 3600 if seconds else 0.0,
        price_source="; ".join(dict.fromkeys(record.price_source for record in records)),
    )


def by_stage(records: Iterable[LedgerRecord]) -> dict[str, LedgerRecord]:
    """One total for each stage, in the order in which stages first appear."""
    parts: dict[str, list[LedgerRecord]] = {}
    for record in records:
        parts.setdefault(record.stage, []).append(record)
    return {stage: totals(group, stage) for stage, group in parts.items()}
