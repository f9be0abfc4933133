"""Models in the Hugging Face layout: config.json beside safetensors, in one file or in shards with an index.

A model is outlined without memory, then filled tensor by tensor; no second copy of it is ever there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hadal.configs.shipped import read_json
from hadal.errors import UserError
from hadal.files import write_json
from hadal.models import float8
from hadal.models.config import ModelConfig
from hadal.models.decoder import Decoder
from hadal.models.families import family_of, from_dict
from hadal.models.names import EMBEDDING, HEAD, copies, mtp_prefix, to_released
from hadal.models.tensor_files import TensorFiles, save_tensors, scale_name

SHARD_BYTES = 5_000_000_000
COMPANIONS = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""Files that go with the weights and do not change with them."""
CONVERTING = "converting.json"
"""What marks a folder that is being converted into."""


class _Unfilled(TorchFunctionMode):
    """Modules are made without initial values: on shapes alone those cost torch a start of its compiler, 2 s."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(function, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return function(*args, **(kwargs or {}))


def outline(config: ModelConfig) -> Decoder:
    """A model of the config's family whose weights have shapes and no memory."""
    with torch.device("meta"), _Unfilled():
        return family_of(config).network(config)


def build(config: ModelConfig) -> Decoder:
    """An uninitialised model of the config's family, in float32."""
    model = outline(config)
    state = {
        name: torch.empty(like.shape) if like.dim() > 1 else torch.full(like.shape, float(not name.endswith("bias")))
        for name, like in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)
    return model


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
        ids = {key: value for key, value in _config_data(source).items() if key.endswith("_token_id")}
        data |= ids
    _write(folder, data, released.items(), shard_bytes, source)


def convert(source: Path, folder: Path, dtype: torch.dtype, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a checkpoint anew in another dtype or other shards; FP8 becomes `dtype`. Holds one shard at a time."""
    data = _config_data(source)
    from_dict(data)
    _check_quantisation(source, data)
    dropped = ("quantization_config", "torch_dtype")
    data = {key: value for key, value in data.items() if key not in dropped}
    data["dtype"] = str(dtype).removeprefix("torch.")

    def tensors(files: TensorFiles) -> Iterator[tuple[str, Tensor]]:
        for name, entry in files.entries.items():
            if not files.is_scale(name):
                files.check(name, entry.shape)
                tensor = torch.empty(entry.shape, dtype=_dtype_of(name, dtype))
                files.read_into(name, tensor)
                yield name, tensor

    if source.resolve() == folder.resolve():
        raise UserError(f"{folder} is the model itself.", "Give another folder for the converted one.")
    with TensorFiles(source) as files, _claimed(folder, [str(source.resolve()), data["dtype"], shard_bytes]):
        _write(folder, data, tensors(files), shard_bytes, source)


@contextmanager
def _claimed(folder: Path, request: list[Any]) -> Iterator[None]:
    """A folder to convert into, marked until that is done: empty, or with what a killed call of the same left there."""
    mark, part = folder / CONVERTING, folder / f".{CONVERTING}.part"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder.", "Give another one for the converted model.")
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if mark.name in there and read_json(mark).get("request") == request:
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
            parts.append(folder / (f"model-{len(parts) + 1:05d}.part" if parts else "model.safetensors.part"))
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
        os.replace(part, folder / name)
    for name in COMPANIONS if source is not None and source != folder else ():
        if source is not None and (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    _write_json(folder / "config.json", config)
    if count > 1:
        weight_map = {name: names[place - 1] for name, place in sorted(places.items())}
        _write_json(index, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, data: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(data, indent=2) + "\n")
    os.replace(temporary, path)


def _config_data(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} is missing.", "Give a folder that holds a finished run or a checkpoint.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}).", "Restore it or start anew.") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} does not hold an object.", "Restore it or start anew.")
    return data


def load_config(folder: Path) -> ModelConfig:
    """The typed config of a checkpoint folder."""
    return from_dict(_config_data(folder))


def _check_quantisation(folder: Path, data: dict[str, Any]) -> None:
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


def _dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    """Router biases stay float32: their steps are smaller than bf16 can add."""
    return torch.float32 if name.endswith("e_score_correction_bias") else dtype


def load_model(folder: Path, dtype: torch.dtype = torch.float32, keep_float8: bool = False) -> Decoder:
    """A model from a checkpoint folder, its weights in `dtype`.

    keep_float8: leave linear layers and experts that are stored in FP8 as they are, for inference.
    """
    data = _config_data(folder)
    config = from_dict(data)
    _check_quantisation(folder, data)
    with TensorFiles(folder) as files:
        prefix = mtp_prefix(config)
        if prefix and not any(name.startswith(prefix) for name in files.entries):
            config = config.without_mtp()  # many tools drop the module's weights and keep the number
        model = outline(config)
        _check_names(files, to_released(model.state_dict(), config), config)
        if keep_float8:
            _keep_float8(files, model)
        state = model.state_dict()
        for name, like in state.items():
            if like.is_meta:
                state[name] = torch.empty(like.shape, dtype=_dtype_of(name, dtype))
                for part, view in to_released({name: state[name]}, config).items():
                    files.read_into(part, view)
        model.load_state_dict(state, assign=True)
        for copy, name in copies(config).items():
            if copy in files.entries:
                _check_copy(files, copy, name, "hadal shares the two, as the paper does.")
        if config.tie_word_embeddings and HEAD in files.entries:
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
                files.read_into(scale_name(part), view)
        float8.keep(model, place, blocks)


def _check_names(files: TensorFiles, wanted: dict[str, Tensor], config: ModelConfig) -> None:
    for name, like in wanted.items():
        files.check(name, tuple(like.shape))
    left = {name for name in files.entries.keys() - wanted.keys() if not files.is_scale(name)}
    left -= copies(config).keys()
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
    files.check(copy, files.entries[name].shape)
    for one, other in zip(files.pieces(copy), files.pieces(name), strict=True):
        if not torch.equal(one.float(), other.float()):
            raise UserError(f"{files.where(copy)}: {copy} differs from {name}.", remedy)
