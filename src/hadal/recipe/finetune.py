"""`hadal sft`: a model and a file of conversations to a fine-tuned model, or to adapters for it, in one folder.

What it will need is told before it starts. Stopped at any moment, the same command carries on. How the training goes
is in `hadal.stages.sft`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from hadal.checkpoints.adapters import is_adapter, save_adapter
from hadal.checkpoints.load import load_config, load_model
from hadal.checkpoints.save import save_model
from hadal.cost.flops import parameters
from hadal.cost.memory import PROCESS, Memory, Pass, gigabytes, training_memory, training_seconds
from hadal.engine.sampler import forbidden_ids
from hadal.errors import UserError
from hadal.files import digest_of, write_json
from hadal.library.find import find_model
from hadal.library.record import write_run
from hadal.machine.device import DEVICES, pick, place
from hadal.machine.memory import resident_memory
from hadal.machine.speed import fastest_dtype, matmul_rates
from hadal.models.config import ModelConfig
from hadal.models.lora import adapter_size, attach, merge
from hadal.ranges import check_ranges
from hadal.reading import nearest, read_dataclass
from hadal.recipe.claim import alone_in, check_same, disk_trouble_told, existing
from hadal.stages.common.needs import memory_left
from hadal.stages.common.run import RunFiles
from hadal.stages.common.view import View
from hadal.stages.sft import Config, batches, sft
from hadal.text.tokenizer import Tokenizer
from hadal.train.conversations import Conversation, read_conversations, rows_of_passes
from hadal.train.optim import kept

STAGE = "sft"
WRITTEN = ("metrics.jsonl", "timing.jsonl", "ledger.jsonl", "stages")


@dataclass(frozen=True)
class SftConfig(Config):
    """Fine-tuning that is a run of its own, on one file of conversations; `data` stays empty."""

    dtype: str = "auto"
    device: str = "auto"
    """`cpu` or `cuda`; left open, a model of some size goes to a GPU, where there is one."""
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise UserError(f"dtype is {self.dtype!r}.", "Known: auto, float32 and bfloat16.")
        if self.device not in DEVICES:
            raise UserError(f"device is {self.device!r}.", nearest(self.device, DEVICES))
        if self.data:
            raise UserError("data is set.", "The file of conversations is an argument of its own.")
        check_ranges(self)

    def to_dict(self) -> dict[str, Any]:
        """The config as plain data."""
        data = asdict(self)
        del data["data"]
        if self.device == "auto":
            del data["device"]
        return data


def finetune(
    model: str, data: Path, out: Path, config: SftConfig, view: View, merged: bool = False,
    command: str = "",
) -> Path:  # fmt: skip
    """Fine-tune, or carry on, or do nothing where it is done; returns the folder.

    merged: leave one model instead of adapters beside their base. UserError for whatever is wrong with the input.
    """
    source = find_model(model)
    if is_adapter(source):
        raise UserError(f"{model} holds adapters, not a model.", "Train its base, or fine-tune with --merge first.")
    shape = load_config(source)
    tokenizer = Tokenizer.load(source)
    if tokenizer.size > shape.vocab_size:
        raise UserError(
            f"The tokenizer of {model} has {tokenizer.size} tokens, the model {shape.vocab_size}.",
            "They do not belong together.",
        )
    if out.exists() and source.resolve() == out.resolve():
        raise UserError(f"{out} is the model itself.", "Choose another folder with --out.")
    conversations, skipped = read_conversations(data, tokenizer, shape.max_position_embeddings)
    if skipped:
        view.note(
            f"Left out {skipped} conversation{'s' * (skipped > 1)}, longer than the model's context of "
            f"{shape.max_position_embeddings:,} tokens."
        )
    request = {"model": model, "weights": _digest(source), "data": digest_of(data), "merged": merged}
    request |= {"config": config.to_dict()}
    with alone_in(out), disk_trouble_told(out):
        record = existing(out, fresh=False, kind=STAGE)
        if record is None:
            config = _decide(config, shape)
            for name in WRITTEN:
                shutil.rmtree(out / name, ignore_errors=True)
                (out / name).unlink(missing_ok=True)
            record = {"kind": STAGE, "name": out.resolve().name, "request": request, "config": config.to_dict()}
            record |= {"command": command}
        else:
            old = record.get("request", {})
            asked = read_dataclass(SftConfig, old.get("config", {}), "run.json")  # what came later has its default
            check_same(out, {**old, "config": asked.to_dict()}, request)
            config = read_dataclass(SftConfig, record["config"], "run.json")
        if record.get("status") == "complete":
            view.note(f"{out} is done already.")
            return out
        _tell_needs(model, shape, conversations, config, view)
        write_run(out, {**record, "status": "running"})
        torch.set_num_threads(config.threads)
        run = RunFiles(out, view)
        run.model_config = shape
        try:
            _train(run, source, model, tokenizer, conversations, config, merged)
        except KeyboardInterrupt:
            run.enter_books(STAGE)
            raise
        write_run(out, {**record, "status": "complete"})
        shutil.rmtree(run.stage_folder(STAGE) / "state", ignore_errors=True)
        view.close()  # so that the stage is told before the result
        kind = "adapters for " + model if config.lora.rank and not merged else "the model"
        view.note(f"{out} holds {kind}: hadal chat {out}")
    return out


def _train(
    run: RunFiles, source: Path, name: str, tokenizer: Tokenizer, conversations: Sequence[Conversation],
    config: SftConfig, merged: bool,
) -> None:  # fmt: skip
    model = load_model(source, getattr(torch, config.dtype))
    if config.lora.rank:
        attach(model, config.lora, config.seed)
    model = model.to(place(config.device))
    forbidden = forbidden_ids(tokenizer, model)
    dtype = getattr(torch, config.dtype)
    sft(run, model, conversations, forbidden, tokenizer.pad_id, config, STAGE, dtype, config.seed)
    if config.lora.rank and not merged:
        save_adapter(run.folder, model, config.lora, str(source.resolve()) if Path(name).is_dir() else name)
        tokenizer.save(run.folder)
    else:
        if config.lora.rank:
            merge(model)
        for parameter in model.parameters():  # and not the routers' biases, whose steps bf16 cannot hold
            parameter.data = parameter.data.to(getattr(torch, config.dtype))
        model.changed()
        save_model(run.folder, model.config, model.state_dict(), source)
    run.enter_books(STAGE)
    write_json(run.stage_folder(STAGE) / "result.json", {"conversations": len(conversations)})


def _decide(config: SftConfig, shape: ModelConfig) -> SftConfig:
    """What a run measures once and then keeps."""
    config = replace(config, device=pick(config.device, parameters(shape).total))
    if config.threads == 0:
        config = replace(config, threads=torch.get_num_threads())
    if config.dtype == "auto":
        config = replace(config, dtype=fastest_dtype(matmul_rates(1.0, config.device)))
    return config


def needs(shape: ModelConfig, conversations: Sequence[Conversation], config: SftConfig) -> Memory:
    """The memory of the largest pass, and of the process that is there already."""
    adapters = adapter_size(shape, config.lora) if config.lora.rank else 0
    value_bytes = 4 if config.dtype == "float32" else 2
    passes = {
        Pass(len(rows), width)
        for chosen in batches(conversations, config, config.seed)
        for rows, width in rows_of_passes([conversations[i] for i in chosen], config.pass_tokens)
    }
    again = config.checkpoint_activations
    memory = training_memory(shape, value_bytes, passes, again, adapters, kept=kept(config.optimizer))
    return memory.beside({PROCESS: resident_memory() if config.device == "cpu" else 0})


def _tell_needs(
    name: str, shape: ModelConfig, conversations: Sequence[Conversation], config: SftConfig, view: View
) -> None:
    """Print the memory and time that it will take; UserError where the memory is not there."""
    memory = needs(shape, conversations, config)
    free = memory_left(config.device)
    tokens = sum(len(c.ids) for c in conversations)
    length = max(len(c.ids) for c in conversations)
    rate = matmul_rates(0.5, config.device)[config.dtype]
    seconds = training_seconds(
        shape, tokens * config.epochs, length, rate, config.checkpoint_activations, config.lora.rank > 0
    )
    view.note(
        f"{len(conversations):,} conversations of {tokens:,} tokens, {config.epochs} epoch{'s' * (config.epochs > 1)}, "
        f"{len(batches(conversations, config, config.seed)):,} updates in {config.dtype} on {config.threads} "
        f"thread{'s' * (config.threads > 1)}: about {seconds / 60:,.1f} minutes."
    )
    there = f"; {gigabytes(free)} are free" if free is not None else ""
    view.note(f"Memory: about {memory.describe()}{there}.")
    if free is not None and memory.total - memory.held.get(PROCESS, 0) > free:
        ways = [] if config.checkpoint_activations else ["--checkpoint-activations"]
        ways += [] if config.lora.rank else ["--lora 16"]
        ways += ["--dtype bfloat16"] if config.dtype == "float32" else []
        ways.append(f"--set pass_tokens={max(256, config.pass_tokens // 4)}")
        raise UserError(
            f"Fine-tuning {name} needs about {gigabytes(memory.total)} of memory, and {gigabytes(free)} are free.",
            f"To need less: {', '.join(ways)}.",
        )


def _digest(folder: Path) -> dict[str, Any]:
    """What tells one checkpoint from another, without reading it: its files and their sizes, and its config."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
    sizes = " ".join(f"{path.name} {path.stat().st_size}" for path in files)
    return {"files": blake2b(sizes.encode(), digest_size=8).hexdigest(), "config": digest_of(folder / "config.json")}
