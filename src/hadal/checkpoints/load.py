"""Models in the Hugging Face layout: config.json beside safetensors, in one file or in shards with an index.

A model is outlined without memory, then filled tensor by tensor; no second copy of it is ever there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hadal.checkpoints.tensors import TensorFiles, open_tensors
from hadal.errors import UserError
from hadal.files import read_object
from hadal.models import float8
from hadal.models.build import outline
from hadal.models.config import ModelConfig
from hadal.models.decoder import Decoder
from hadal.models.families import from_dict
from hadal.models.names import EMBEDDING, HEAD, copies, mtp_prefix, to_released


def config_data(folder: Path) -> dict[str, Any]:
    """What config.json says."""
    missing = "Give a folder that holds a finished run or a checkpoint."
    return read_object(folder / "config.json", "Restore it or start anew.", missing)


def load_config(folder: Path) -> ModelConfig:
    """The typed config of a checkpoint folder."""
    return from_dict(config_data(folder))


def check_quantisation(folder: Path, data: dict[str, Any]) -> None:
    """UserError for weights that are quantised in another way than DeepSeek's FP8 blocks."""
    found = data.get("quantization_config")
    if found is None:
        return
    wanted = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [float8.BLOCK, float8.BLOCK]}
    for key, value in wanted.items():
        if not isinstance(found, dict) or found.get(key, "e4m3" if key == "fmt" else None) != value:
            got = found.get(key) if isinstance(found, dict) else found
            raise UserError(
                f"{folder / 'config.json'}: quantization_config has {key} {got!r}.",
                f"hadal reads {value!r}, or weights that are not quantised.",
            )


def dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    """Router biases stay float32: their steps are smaller than bf16 can add."""
    return torch.float32 if name.endswith("e_score_correction_bias") else dtype


def load_model(folder: Path, dtype: torch.dtype = torch.float32, keep_float8: bool = False) -> Decoder:
    """A model from a checkpoint folder, its weights in `dtype`.

    keep_float8: leave linear layers and experts that are stored in FP8 as they are, for inference.
    """
    data = config_data(folder)
    config = from_dict(data)
    check_quantisation(folder, data)
    with open_tensors(folder) as files:
        prefix = mtp_prefix(config)
        if prefix and not any(name.startswith(prefix) for name in files.names()):
            config = config.without_mtp()  # many tools drop the module's weights and keep the number
        model = outline(config)
        _check_names(files, to_released(model.state_dict(), config), config)
        if keep_float8:
            _keep_float8(files, model)
        state = model.state_dict()
        for name, like in state.items():
            if like.is_meta:
                state[name] = torch.empty(like.shape, dtype=dtype_of(name, dtype))
                for part, view in to_released({name: state[name]}, config).items():
                    files.read_into(part, view)
        model.load_state_dict(state, assign=True)
        for copy, name in copies(config).items():
            if copy in files:
                _check_copy(files, copy, name, "hadal shares the two, as the paper does.")
        if config.tie_word_embeddings and HEAD in files:
            remedy = "config.json ties the two: if the head is meant to stay, set tie_word_embeddings to false there."
            _check_copy(files, HEAD, EMBEDDING, remedy)
    return model


def _keep_float8(files: TensorFiles, model: Decoder) -> None:
    """Fill an outlined model's matrices that can stay in FP8, and put in their modules' places what multiplies them."""
    wanted = model.state_dict()
    for place, names in list(float8.places(model)):
        parts = to_released({name: wanted[name] for name in names}, model.config)
        if not all(files.in_whole_blocks(part) for part in parts):
            continue
        blocks = [float8.room(wanted[name].shape) for name in names]
        for name, (raw, scale) in zip(names, blocks, strict=True):
            for part, view in to_released({name: raw}, model.config).items():
                files.read_float8(part, view)
            for part, view in to_released({name: scale}, model.config).items():
                files.read_scales(part, view)
        float8.keep(model, place, blocks)


def _check_names(files: TensorFiles, wanted: dict[str, Tensor], config: ModelConfig) -> None:
    for name, like in wanted.items():
        files.check(name, tuple(like.shape))
    left = set(files.names()) - wanted.keys() - copies(config).keys()
    left -= {name for name in left if name.endswith("rotary_emb.inv_freq")}  # older Llama files store the frequencies
    if config.tie_word_embeddings:
        left.discard(HEAD)
    if left:
        name = min(left)
        raise UserError(
            f"{files.where(name)} has a tensor the config does not name: {name}.", "Is config.json its own?"
        )


def _check_copy(files: TensorFiles, copy: str, name: str, remedy: str) -> None:
    """UserError unless what should be a second copy of a tensor is one; hadal keeps the first."""
    files.check(copy, files.shape(name))
    for one, other in zip(files.pieces(copy), files.pieces(name), strict=True):
        if not torch.equal(one.float(), other.float()):
            raise UserError(f"{files.where(copy)}: {copy} differs from {name}.", remedy)
