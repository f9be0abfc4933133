"""Reading and writing models in the Hugging Face layout: config.json and model.safetensors.

Inside hadal some matrices are joined (query, key and value; gate and up; an expert layer's experts); on disk
every tensor has its released name, so that transformers opens the folder. Only safetensors: no pickle.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hadal.configs.models import DeepseekConfig, DenseConfig, ModelConfig, from_dict
from hadal.errors import UserError
from hadal.models.decoder import Decoder
from hadal.models.dense import Dense

_RENAMES = [
    (r"^embed\.weight$", "model.embed_tokens.weight"),
    (r"^norm\.weight$", "model.norm.weight"),
    (r"^head\.weight$", "lm_head.weight"),
    (r"^layers\.(\d+)\.input_norm\.", r"model.layers.\1.input_layernorm."),
    (r"^layers\.(\d+)\.post_norm\.", r"model.layers.\1.post_attention_layernorm."),
    (r"^layers\.(\d+)\.attention\.(q_norm|k_norm)$", r"model.layers.\1.self_attn.\2.weight"),
    (r"^layers\.(\d+)\.attention\.", r"model.layers.\1.self_attn."),
    (r"^layers\.", "model.layers."),
]


def build(config: ModelConfig) -> Decoder:
    """An uninitialised model of the config's family."""
    if isinstance(config, DenseConfig):
        return Dense(config)
    from hadal.models.deepseek import Deepseek

    return Deepseek(config)


def released_name(name: str, config: ModelConfig) -> str:
    """The released name of one of hadal's parameters; of a joined matrix, with the joined part's name in it."""
    if isinstance(config, DeepseekConfig) and name.startswith("mtp."):
        extra = f"layers.{config.num_hidden_layers}."  # the module is numbered as one more layer
        name = name.replace("mtp.layer.", extra).replace("mtp.head_norm", extra + "shared_head.norm")
        name = name.replace("mtp.", extra)
    for pattern, replacement in _RENAMES:
        renamed = re.sub(pattern, replacement, name)
        if renamed != name:
            return renamed
    return name


def released_parts(name: str, config: ModelConfig) -> list[tuple[str, int]]:
    """The tensors, with their rows, that one of hadal's parameters is in the released layout."""
    renamed = released_name(name, config)
    if renamed.endswith("qkv_proj.weight"):
        assert isinstance(config, DenseConfig)
        q, kv = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        return [(renamed.replace("qkv", letter), rows) for letter, rows in (("q", q), ("k", kv), ("v", kv))]
    if renamed.endswith("gate_up_proj.weight"):
        width = config.intermediate_size
        if isinstance(config, DeepseekConfig) and "shared_experts" in renamed:
            width = config.moe_intermediate_size * config.n_shared_experts
        return [(renamed.replace("gate_up", part), width) for part in ("gate", "up")]
    return [(renamed, -1)]


def to_released(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """hadal's state under the released names; joined matrices taken apart."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if re.search(r"\.experts\.(gate_up_proj|down_proj)$", name):
            out.update(_experts_apart(released_name(name, config), tensor))
            continue
        parts = released_parts(name, config)
        pieces = [tensor] if len(parts) == 1 else tensor.split([rows for _, rows in parts])
        out.update({part: piece.contiguous() for (part, _), piece in zip(parts, pieces, strict=True)})
    return out


def from_released(released: dict[str, Tensor], model: Decoder, source: str) -> dict[str, Tensor]:
    """The inverse of `to_released` for the shapes of `model`; UserError names what does not fit."""
    out: dict[str, Tensor] = {}
    left = set(released)
    for name, like in model.state_dict().items():
        wanted = to_released({name: like.to("meta")}, model.config)
        for part, shape in ((part, tuple(tensor.shape)) for part, tensor in wanted.items()):
            if part not in released:
                raise UserError(f"{source} lacks the tensor {part}.", "The file is incomplete or of another model.")
            if released[part].shape != shape:
                raise UserError(
                    f"{source}: {part} is {tuple(released[part].shape)} where the config wants {shape}.",
                    "Do config.json and weights belong together?",
                )
            if not torch.isfinite(released[part]).all():
                raise UserError(f"{source}: {part} holds values that are not finite.", "The checkpoint is broken.")
        left -= wanted.keys()
        joined = torch.cat([released[part] for part in wanted])
        out[name] = joined.view(like.shape)  # of experts one after the other: a stack
    if model.config.tie_word_embeddings:
        left.discard("lm_head.weight")
    if left:
        raise UserError(f"{source} has a tensor the config does not name: {min(left)}.", "Is config.json its own?")
    return out


def _experts_apart(name: str, tensor_EOI: Tensor) -> dict[str, Tensor]:
    prefix, _, kind = name.rpartition(".")
    out: dict[str, Tensor] = {}
    for e, matrix in enumerate(tensor_EOI):
        if kind == "down_proj":
            out[f"{prefix}.{e}.down_proj.weight"] = matrix.contiguous()
        else:
            gate, up = matrix.chunk(2)
            out[f"{prefix}.{e}.gate_proj.weight"] = gate.contiguous()
            out[f"{prefix}.{e}.up_proj.weight"] = up.contiguous()
    return out


def save_model(folder: Path, config: ModelConfig, state: dict[str, Tensor]) -> None:
    """Write config.json and model.safetensors; each file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "model.safetensors.part"
    save_file(to_released(state, config), temporary, metadata={"format": "pt"})
    os.replace(temporary, folder / "model.safetensors")
    temporary = folder / "config.json.part"
    temporary.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    os.replace(temporary, folder / "config.json")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file, or one line on why not."""
    if not path.is_file():
        raise UserError(f"{path} is missing.", "Give a folder that holds a finished run or a checkpoint.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({error}).", "It is truncated or corrupt: restore it or start anew."
        ) from None


def load_config(folder: Path) -> ModelConfig:
    """The typed config of a checkpoint folder."""
    path = folder / "config.json"
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing.", "Give a folder that holds a finished run or a checkpoint.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}).", "Restore it or start anew.") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} does not hold an object.", "Restore it or start anew.")
    return from_dict(data)


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """A model from a checkpoint folder, its weights in `dtype`."""
    model = build(load_config(folder))
    path = folder / "model.safetensors"
    state = from_released(load_tensors(path), model, str(path))
    model.load_state_dict(state)
    for parameter in model.parameters():  # buffers (router biases, rotary tables) stay float32
        parameter.data = parameter.data.to(dtype)
    return model
