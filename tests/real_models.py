"""Released checkpoints for the tests marked `real`: HADAL_REAL_MODELS names the folder they lie in."""

import os
from pathlib import Path

import pytest

SMOLLM2 = "smollm2-135m-instruct"
QWEN = "qwen2.5-coder-0.5b-instruct"
BOTH = (SMOLLM2, QWEN)


def real_model(name: str) -> Path:
    """The folder of a released checkpoint; skips the test where it is not there."""
    root = os.environ.get("HADAL_REAL_MODELS", "")
    if not root:
        pytest.skip("HADAL_REAL_MODELS does not name a folder of released checkpoints")
    folder = Path(root) / name
    if not (folder / "config.json").is_file():
        pytest.skip(f"{folder} does not hold a checkpoint")
    return folder
