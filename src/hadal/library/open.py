"""The model in a folder, whatever the folder holds."""

from __future__ import annotations

from pathlib import Path

import torch

from hadal.checkpoints.adapters import CONFIG, is_adapter, load_adapter, read_adapter_config
from hadal.checkpoints.load import load_model
from hadal.errors import UserError
from hadal.library.find import find_model
from hadal.models.decoder import Decoder
from hadal.models.lora import merge


def open_model(folder: Path, dtype: torch.dtype = torch.float32, keep_float8: bool = False) -> Decoder:
    """The model of a checkpoint folder, or of an adapter folder: its base with the adapters merged.

    keep_float8: as for `load_model`; adapters are merged into numbers that have more bits.
    """
    if not is_adapter(folder):
        return load_model(folder, dtype, keep_float8)
    data = read_adapter_config(folder)
    base, revision = data.get("base_model_name_or_path"), data.get("revision")
    if not isinstance(base, str) or not base:
        raise UserError(f"{folder / CONFIG} does not name its base model.", "Set base_model_name_or_path to it.")
    if not isinstance(revision, str | None):
        raise UserError(f"{folder / CONFIG} has revision {revision!r}.", "It must be a branch, a tag or a commit.")
    model = load_model(find_model(base, revision), dtype)
    load_adapter(model, folder)
    merge(model)
    return model
