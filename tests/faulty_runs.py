"""Runs a command again and again in one folder, with faults. Not a test itself."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUIET = {**os.environ, "NO_COLOR": "1"}


class FaultyRuns:
    """`hadal ARGUMENTS --out FOLDER/run` by `small_run.py`. outcome: what of a run must be the same to the last bit."""

    def __init__(self, folder: Path, outcome: Callable[[Path], dict[str, bytes]], *arguments: str) -> None:
        self.out, self._outcome = folder / "run", outcome
        self.arguments = [*arguments, "--out", str(self.out)]

    def __call__(self, kind: str, *moments: int | str) -> list[dict[str, Any]]:
        words = [str(self.out), kind, *map(str, moments), "--", *self.arguments]
        program = [sys.executable, "-P", str(Path(__file__).with_name("small_run.py")), *words]
        done = subprocess.run(program, capture_output=True, text=True, timeout=1200, env=QUIET)
        assert done.stderr == ""
        return [json.loads(line) for line in done.stdout.splitlines()]

    def outcome(self, number: int) -> dict[str, bytes]:
        """Of the run of that number that went to its end."""
        return self._outcome(self.out.with_name(f"run-{number}"))
