"""A stage's state on disk: tensors and numbers from which it carries on bit for bit.

Each save is a safetensors file and a JSON file that holds its digest and is written last. The newest pair that
is whole is the one that counts, so a kill at any moment, or a damaged last file, costs a few steps only.
"""

from __future__ import annotations

import json
import os
from hashlib import blake2b
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from hadal.errors import UserError

KEEP = 2


class StateFolder:
    """The saved states of one stage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _paths(self, step: int) -> tuple[Path, Path]:
        return self.folder / f"state-{step:07d}.safetensors", self.folder / f"state-{step:07d}.json"

    def steps(self) -> list[int]:
        """Steps that have a state, oldest first."""
        return sorted(int(path.stem.removeprefix("state-")) for path in self.folder.glob("state-*.json"))

    def save(self, step: int, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Write the state of `step` and drop all but the last few."""
        weights, record = self._paths(step)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part = weights.with_suffix(".part")
            save_file(tensors, part)
            digest = blake2b(part.read_bytes(), digest_size=16).hexdigest()
            os.replace(part, weights)
            part.write_text(json.dumps({"digest": digest, "numbers": numbers}))
            os.replace(part, record)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UserError(
                f"cannot write a checkpoint in {self.folder}: {reason}.",
                "Free some space; the same command then carries on.",
            ) from error
        except Exception as error:  # safetensors wraps a full disk in an error of its own
            if "os error" not in str(error).lower() and "i/o" not in str(error).lower():
                raise
            raise UserError(
                f"cannot write a checkpoint in {self.folder}: {error}.",
                "Free some space; the same command then carries on.",
            ) from error
        for old in self.steps()[:-KEEP]:
            for path in self._paths(old):
                path.unlink(missing_ok=True)

    def load(self) -> tuple[int, dict[str, Tensor], dict[str, Any], list[int]] | None:
        """(step, tensors, numbers, newer steps that were damaged) of the newest whole state."""
        damaged: list[int] = []
        for step in reversed(self.steps()):
            weights, record = self._paths(step)
            try:
                data = json.loads(record.read_text())
                if blake2b(weights.read_bytes(), digest_size=16).hexdigest() != data["digest"]:
                    raise ValueError("digest")
                return step, load_file(weights), data["numbers"], damaged
            except (OSError, ValueError, KeyError):
                damaged.append(step)
        if damaged:
            raise UserError(
                f"Every checkpoint in {self.folder} is damaged.", "Start anew: the same command with --fresh."
            )
        return None
