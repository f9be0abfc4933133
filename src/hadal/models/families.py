"""The families that hadal has: the folders beside this file, each found by its name. No torch."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any

from hadal.errors import UserError
from hadal.models.config import ModelConfig
from hadal.models.family import Family


@cache
def families() -> dict[str, Family]:
    """Every family by the name of its folder."""
    folders = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.ispkg]
    return {name: importlib.import_module(f"hadal.models.{name}").FAMILY for name in folders}


@cache
def model_types() -> dict[str, tuple[Family, type[ModelConfig]]]:
    """For every `model_type` of config.json, its family and the class of its configs."""
    return {kind.model_type: (family, kind) for family in families().values() for kind in family.types}


def family_of(config: ModelConfig) -> Family:
    """The family of a config's model type."""
    return model_types()[config.model_type][0]


def from_dict(data: dict[str, Any]) -> ModelConfig:
    """The typed config for the contents of a config.json.

    UserError for a family that hadal does not know, and for what it says that hadal would not honour.
    """
    found = model_types().get(str(data.get("model_type")))
    if found is None:
        known = ", ".join(sorted(model_types()))
        raise UserError(f"config.json has model_type {data.get('model_type')!r}.", f"hadal reads {known}.")
    return found[1].from_dict(data)
