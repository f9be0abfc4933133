"""Writing checkpoint folders: a model's weights, or another checkpoint in another dtype or other shards.

Files appear whole or not at all, and weights of an interrupted call are never taken for those of another.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hadal.checkpoints.load import check_quantisation, config_data, dtype_of
from hadal.checkpoints.safetensors import save_tensors
from hadal.checkpoints.tensors import TensorFiles, open_tensors
from hadal.errors import UserError
from hadal.files import put, read_object, write_bytes, write_json, write_text
from hadal.models.config import ModelConfig
from hadal.models.families import from_dict
from hadal.models.names import EMBEDDING, copies, to_released

SHARD_BYTES = 5_000_000_000
COMPANIONS = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""Files that go with the weights and do not change with them."""
CONVERTING = "converting.json"
"""What marks a folder that is being converted into."""


def save_model(
    folder: Path,
    config: ModelConfig,
    state: dict[str, Tensor],
    source: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write weights and config.json, in the dtype that the embedding has.

    source: a checkpoint folder whose tokenizer and generation files, and special ids, are carried over.
    Files appear whole or not at all, and weights of an interrupted call are never taken for those of another.
    """
    released = to_released(state, config)
    released |= {copy: released[name].clone() for copy, name in copies(config).items()}
    data = config.to_dict() | {"dtype": str(released[EMBEDDING].dtype).removeprefix("torch.")}
    if source is not None:
        ids = {key: value for key, value in config_data(source).items() if key.endswith("_token_id")}
        data |= ids
    _write(folder, data, released.items(), shard_bytes, source)


def convert(source: Path, folder: Path, dtype: torch.dtype, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a checkpoint anew in another dtype or other shards; FP8 becomes `dtype`. Holds one shard at a time."""
    data = config_data(source)
    from_dict(data)
    check_quantisation(source, data)
    dropped = ("quantization_config", "torch_dtype")
    data = {key: value for key, value in data.items() if key not in dropped}
    data["dtype"] = str(dtype).removeprefix("torch.")

    def tensors(files: TensorFiles) -> Iterator[tuple[str, Tensor]]:
        for name in files.names():
            files.check(name, files.shape(name))
            tensor = torch.empty(files.shape(name), dtype=dtype_of(name, dtype))
            files.read_into(name, tensor)
            yield name, tensor

    if source.resolve() == folder.resolve():
        raise UserError(f"{folder} is the model itself.", "Give another folder for the converted one.")
    with open_tensors(source) as files, _claimed(folder, [str(source.resolve()), data["dtype"], shard_bytes]):
        _write(folder, data, tensors(files), shard_bytes, source)


@contextmanager
def _claimed(folder: Path, request: list[Any]) -> Iterator[None]:
    """A folder to convert into, marked until that is done: empty, or with what a killed call of the same left there."""
    mark, part = folder / CONVERTING, folder / f".{CONVERTING}.part"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder.", "Give another one for the converted model.")
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if mark.name in there and read_object(mark, "Empty the folder.").get("request") == request:
        there = set()
    if there - {part.name}:
        raise UserError(f"{folder} is not empty.", "Give another folder for the converted model, or empty it.")
    write_json(mark, {"request": request})
    try:
        yield
    except BaseException:
        if [path.name for path in folder.iterdir()] == [mark.name]:
            mark.unlink()
        raise
    mark.unlink()


def _write(
    folder: Path,
    config: dict[str, Any],
    tensors: Iterable[tuple[str, Tensor]],
    shard_bytes: int,
    source: Path | None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[Path] = []
    places: dict[str, int] = {}
    total = 0
    try:
        shard: dict[str, Tensor] = {}
        size = 0

        def flush() -> None:
            parts.append(folder / f".model-{len(parts) + 1:05d}.safetensors.part")
            save_tensors(parts[-1], shard)
            places.update(dict.fromkeys(shard, len(parts)))
            shard.clear()

        for name, tensor in tensors:
            if shard and size + tensor.nbytes > shard_bytes:
                flush()
                size = 0
            shard[name] = tensor.contiguous()
            size += tensor.nbytes
            total += tensor.nbytes
        flush()
    except BaseException:
        for part in parts:
            part.unlink(missing_ok=True)
        raise
    count = len(parts)
    names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    if count == 1:
        names = ["model.safetensors"]
    index = folder / "model.safetensors.index.json"
    index.unlink(missing_ok=True)  # from here to the last line the folder has no weights, rather than mixed ones
    if count > 1:
        (folder / "model.safetensors").unlink(missing_ok=True)
    for stale in set(folder.glob("model-*-of-*.safetensors")) - {folder / name for name in names}:
        stale.unlink()
    for part, name in zip(parts, names, strict=True):
        put(part, folder / name)
    for name in COMPANIONS if source is not None and source != folder else ():
        if source is not None and (source / name).is_file():
            write_bytes(folder / name, (source / name).read_bytes())
    _write_json(folder / "config.json", config)
    if count > 1:
        weight_map = {name: names[place - 1] for name, place in sorted(places.items())}
        _write_json(index, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, data: dict[str, Any]) -> None:
    write_text(path, json.dumps(data, indent=2) + "\n")
