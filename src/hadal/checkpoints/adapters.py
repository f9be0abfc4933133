"""Folders of low-rank adapters in PEFT's layout: adapter_config.json beside adapter_model.safetensors.

Tensors are named `base_model.model.<released name>.lora_A.weight`.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from hadal.checkpoints.safetensors import save_tensors
from hadal.checkpoints.tensors import open_tensors
from hadal.errors import UserError
from hadal.files import read_object, replacing
from hadal.models.decoder import Decoder
from hadal.models.lora import (
    LoraConfig,
    LoraExperts,
    LoraLinear,
    add_adapter,
    sites_of,
    with_adapters,
)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


def save_adapter(folder: Path, model: Decoder, config: LoraConfig, base: str) -> None:
    """Write the adapters as PEFT reads them; `base` is the model's id or folder. Whole files or none."""
    tensors: dict[str, Tensor] = {}
    for path, site in sites_of(model).items():
        module = model.get_submodule(site.module)
        if not isinstance(module, LoraLinear | LoraExperts) or site.part not in module.scale:
            continue
        for letter, held in (("A", module.lora_A), ("B", module.lora_B)):
            matrix = held[site.part].detach()
            matrix = matrix[site.expert] if site.expert >= 0 else matrix
            tensors[f"base_model.model.{path}.lora_{letter}.weight"] = matrix.contiguous()
    data = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True,
        "r": config.rank, "lora_alpha": config.alpha or 2 * config.rank, "lora_dropout": config.dropout,
        "target_modules": sorted({name.split(".")[-3] for name in tensors}), "bias": "none", "fan_in_fan_out": False,
        "modules_to_save": None, "use_rslora": False, "use_dora": False,
    }  # fmt: skip
    with replacing(folder / CONFIG) as config_part, replacing(folder / WEIGHTS) as weights_part:
        save_tensors(weights_part, tensors)
        config_part.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


# What a config may say without changing what is computed; every other key has to be empty.
_READ = {"peft_type", "r", "lora_alpha", "use_rslora", "init_lora_weights", "bias", "lora_dropout", "revision"}
_HARMLESS = {
    "task_type", "base_model_name_or_path", "inference_mode", "auto_mapping", "peft_version",
    "target_modules", "exclude_modules", "layers_pattern", "layers_to_transform", "rank_pattern", "loftq_config",
    "eva_config", "corda_config", "megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying",
}  # fmt: skip
_KEEPS_BASE = (True, False, None, "gaussian", "eva", "orthogonal")


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json, checked; UserError for what hadal would not honour."""
    path = folder / CONFIG
    missing = "Give a folder that holds an adapter in PEFT's layout."
    data = read_object(path, "Save the adapter again.", missing)
    if data.get("peft_type") != "LORA":
        raise UserError(f"{path} has peft_type {data.get('peft_type')!r}.", "hadal reads LORA.")
    for key, value in data.items():
        empty = value in (None, False, {}, []) or (key == "bias" and value == "none")
        if not empty and (key == "bias" or key not in _READ | _HARMLESS):
            raise UserError(f"{path} has {key} {value!r}.", "hadal reads plain adapters: merge it with PEFT.")
    if data.get("init_lora_weights") not in _KEEPS_BASE:
        raise UserError(
            f"{path} has init_lora_weights {data['init_lora_weights']!r}, which changes the base model.",
            "Save the adapter for the unchanged base, with PEFT's path_initial_model_for_weight_conversion.",
        )
    for key, kind in (("r", int), ("lora_alpha", int | float)):
        value = data.get(key)
        if not isinstance(value, kind) or isinstance(value, bool) or not 0 < value < math.inf:
            raise UserError(f"{path} has {key} {value!r}.", "It must be a number above 0.")
    return data


def load_adapter(model: Decoder, folder: Path) -> None:
    """Freeze a model and give it the adapters of a folder; UserError, naming file and tensor, where they do not fit."""
    data = read_adapter_config(folder)
    with open_tensors(folder, "adapter_model") as files:
        sites = sites_of(model)
        pairs: dict[str, dict[str, str]] = {}
        for name in files.names():
            match = _NAME.fullmatch(name)
            if match is None:
                raise UserError(f"{files.where(name)}: {name} is not a linear layer's adapter.", "hadal reads those.")
            if match[1] not in sites:
                raise UserError(
                    f"{files.where(name)} adapts {match[1]}, which the model does not have.",
                    "Is it an adapter of another model?",
                )
            pairs.setdefault(match[1], {})[match[2]] = name
        if not pairs:
            raise UserError(f"{files.source} holds no adapters.", "Save it again.")
        model.requires_grad_(False)
        for path, names in pairs.items():
            site = sites[path]
            rows, width = site.shape
            found = files.shape(names.get("A") or names["B"])
            rank = (found[0] if "A" in names else found[-1]) if len(found) == 2 else 0
            if rank < 1:
                raise UserError(f"{files.source}: the adapter of {path} is {found}.", "It must have a rank.")
            for letter, shape in (("A", (rank, width)), ("B", (rows, rank))):
                files.check(names.get(letter, f"base_model.model.{path}.lora_{letter}.weight"), shape)
            module = with_adapters(model, site.module, sites, 0.0)
            if site.part not in module.scale:  # experts that the folder leaves out keep an adapter of zeros
                scale = data["lora_alpha"] / (math.sqrt(rank) if data.get("use_rslora") else rank)
                add_adapter(module, model, site, sites, rank, scale)
            elif module.lora_A[site.part].shape[-2] != rank:
                cause = f"{files.source}: experts of {site.module} have adapters of different ranks."
                raise UserError(cause, "hadal stacks equal ones.")
            for letter, held in (("A", module.lora_A), ("B", module.lora_B)):
                out = held[site.part].data
                files.read_into(names[letter], out[site.expert] if site.expert >= 0 else out)
        model.changed()


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and not a model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()
