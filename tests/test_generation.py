"""Weights have a generation: every writer counts it on, and the engine keeps nothing that other weights computed."""

from __future__ import annotations

import ast
import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_engine_exact import TOKENIZER, make
from tokenizer_families import write_tokenizer

from hadal.checkpoints.adapters import load_adapter, save_adapter
from hadal.checkpoints.load import load_model
from hadal.checkpoints.save import save_model
from hadal.cli import main
from hadal.engine import LLM, EngineConfig, SamplingParams, core
from hadal.engine.kv.pool import Pool
from hadal.engine.kv.prefix import BLOCK, PrefixCache
from hadal.errors import UserError
from hadal.evaluate.suite import ask
from hadal.models.build import build
from hadal.models.checksum import checksum
from hadal.models.decoder import Decoder
from hadal.models.deepseek.router import routers
from hadal.models.dense.config import Qwen2Config
from hadal.models.lora import LoraConfig, attach, merge
from hadal.models.packed import pack, packed_copy, repack
from hadal.rewards import read_rewards
from hadal.rollout import Query, sample_all
from hadal.stages.common import run as run_module
from hadal.stages.common.run import Run
from hadal.tasks import BUILT_IN
from hadal.text.tokenizer import Tokenizer
from hadal.train.optim import OptimizerConfig
from hadal.train.optim.flat import FlatOptimizer
from hadal.train.overlap import Ahead
from hadal.train.rl import Batch
from hadal.train.rollouts import sample_groups

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPT = TOKENIZER.encode("how many letters are there in this word? ") * 3
PARAMS = SamplingParams(max_tokens=6, seed=3, n=2, logprobs=0)
LEARN = OptimizerConfig(lr=3e-3, muon_lr=0.0)


def shaken(optimizer: FlatOptimizer) -> None:
    """One update by a gradient that is only noise."""
    optimizer.grad.normal_(generator=torch.Generator().manual_seed(optimizer.updates))
    optimizer.step()


def sampled(model: Decoder, **config: Any) -> list[Any]:
    return LLM(model, TOKENIZER, EngineConfig(**config)).generate([PROMPT], PARAMS)[0].outputs


# The engine


@pytest.mark.parametrize("arch", ["dense", "deepseek"])
@pytest.mark.parametrize("adapters", [0, 4])
def test_an_update_of_the_weights_empties_the_prefix_store(arch: str, adapters: int) -> None:
    model = make(arch)
    if adapters:
        attach(model, LoraConfig(adapters), 0)
    optimizer, llm = FlatOptimizer(model, LEARN), LLM(model, TOKENIZER)
    generations = []
    for _ in range(3):
        shaken(optimizer)
        first, second = (llm.generate([PROMPT], PARAMS)[0] for _ in range(2))
        assert first.outputs == second.outputs == sampled(model, keep_prompts=False)
        assert first.cached_tokens == 0 and second.cached_tokens >= BLOCK
        generations.append(first.outputs[0].generation)
    assert generations == sorted(set(generations)) and generations[-1] == model.generation


def test_what_was_begun_with_other_weights_is_not_kept() -> None:
    """Neither a prompt whose second half was read with new weights, nor a reply that began with old ones."""
    model = make("dense")
    optimizer = FlatOptimizer(model, LEARN)
    for steps in (1, 4):  # in the middle of the prompt, and of the reply
        llm = LLM(model, TOKENIZER, EngineConfig(chunk=64, keep_replies=True))
        request = llm.engine.add(PROMPT, PARAMS, 0)
        for _ in range(steps):
            llm.engine.step()
        assert (llm.engine.scheduler.prefill is not None) == (steps == 1) and not request.done
        shaken(optimizer)
        while llm.engine.has_work():
            llm.engine.step()
        assert len(llm.engine.kv.prefix) == 0
        assert llm.generate([PROMPT], PARAMS)[0].outputs == sampled(model)


def test_a_write_without_a_word_is_found() -> None:
    model = make("deepseek")
    llm = LLM(model, TOKENIZER, EngineConfig(check_weights=True))
    llm.generate([PROMPT], PARAMS)
    for tensor in (model.embed.weight, routers(model)[0].e_score_correction_bias):
        with torch.no_grad():
            tensor[-1] += 1
        with pytest.raises(RuntimeError, match=r"changed\(\)"):
            llm.generate([PROMPT], PARAMS)
        model.changed()
        llm.generate([PROMPT], PARAMS)


# Whoever writes


def _adapted(model: Decoder) -> Decoder:
    attach(model, LoraConfig(4), 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_()
    return model


def _writers(folder: Path) -> Iterator[tuple[str, Decoder, Callable[[], object]]]:
    """Everything that writes to weights, by name: a model, and what writes to it."""
    model, other = make("deepseek"), make("deepseek")
    other.initialise(9)
    optimizer = FlatOptimizer(model, LEARN)
    yield "initialise", model, lambda: model.initialise(5)
    yield "load_state_dict", model, lambda: model.load_state_dict(other.state_dict())
    yield "step", model, lambda: shaken(optimizer)
    state = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    shaken(optimizer)
    yield "load_state", model, lambda: optimizer.load_state(state)
    low = make("dense")
    yield "masters in bf16", low, lambda: FlatOptimizer(low, LEARN, torch.bfloat16)
    yield "dtype", low, lambda: low.to(torch.float64)
    extra = {name: tensor.clone() for name, tensor in model.extra_state().items()}
    for router in routers(model):
        router.load[0] += 5
    yield "balance", model, lambda: model.after_update(0.1)
    yield "extra state", model, lambda: model.load_extra_state(extra)
    adapted = _adapted(make("deepseek"))
    save_adapter(folder, adapted, LoraConfig(4), "base")
    yield "attach", other, lambda: attach(other, LoraConfig(2), 0)
    plain = make("deepseek")
    yield "load_adapter", plain, lambda: load_adapter(plain, folder)
    yield "merge", plain, lambda: merge(plain)
    packed, _ = packed_copy(plain, "float32")
    yield "repack", packed, lambda: repack(packed, model)
    yield "pack", plain, lambda: pack(plain, "bfloat16")
    policy = make("dense")
    policy.initialise(3)
    sampler = LLM(make("dense"), TOKENIZER)
    ahead = Ahead(sampler, lambda llm, step: Batch([], torch.zeros(0), 0.0), 1)
    yield "overlap", sampler.model, lambda: ahead.beside(policy, 1).__enter__()


def test_every_writer_counts_the_generation_on(tmp_path: Path) -> None:
    @torch.no_grad()
    def bits(model: Decoder) -> tuple[int, list[float]]:  # a packed matrix is in no checksum
        return checksum(model), model.logits(model(torch.tensor([PROMPT[:8]]))).flatten().tolist()

    for name, model, write in _writers(tmp_path):
        generation, before = model.generation, bits(model)
        write()
        assert bits(model) != before, name
        assert model.generation > generation, name


def test_a_loaded_model_and_a_copy_go_on_by_themselves(tmp_path: Path) -> None:
    model = make("dense")
    save_model(tmp_path, model.config, model.state_dict())
    copied, loaded = copy.deepcopy(model), load_model(tmp_path)
    model.changed()
    assert copied.generation == model.generation - 1 and checksum(copied) == checksum(loaded)


WRITES_NO_SAMPLED_WEIGHTS = {
    "checkpoints/safetensors.py": {"SafetensorFiles.read_into"},  # fills what load_state_dict then takes over
    "models/float8.py": {"Float8Linear.forward", "keep"},  # activations; within load_model
    "models/cache.py": {"Columns.positions"},
    "models/packed.py": {"PackedLinear._by_blocks", "_shell", "_cast", "_pack_modules.replace_one"},  # within pack
    "models/lora.py": {"with_adapters", "add_adapter"},  # within attach and load_adapter
    "models/deepseek/router.py": {"Router.forward", "Router.choose"},  # counts loads; scores
    "models/balance.py": {"balance_loss", "Counted.of"},  # a mask's
    "train/losses.py": None,  # gradients
    "train/masters.py": {"_move_gradient", *(f"FlatMasters.{name}" for name in ("zero_grad", "step", "load_state")),
                         "FlatMasters._take", "FlatMasters.decay"},  # refresh; within __init__, within step
    "train/optim/flat.py": {"FlatOptimizer._muon"},  # within step
    "train/rollouts.py": {"counted_rows"},  # a mask
    "stages/sft.py": {"gradients"},  # a loss's weight
}
"""Functions that write in place and have no `changed()` of their own, each with what sees to it."""


def _in_place(node: ast.AST) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        name = node.func.attr
        return (name.endswith("_") and not name.startswith("_") and name not in ("requires_grad_", "manual_seed_")) or (
            name in ("set_submodule", "load_state_dict")
        )
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
    flat = [part for target in targets for part in ast.walk(target)]
    return any(isinstance(part, ast.Attribute) and part.attr in ("data", "weight", "bias") for part in flat)


def _functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if isinstance(node, ast.FunctionDef) and node.name != "__init__":
                yield prefix + node.name, node
            yield from _functions(node, f"{prefix}{node.name}.")


def test_every_function_that_writes_in_place_is_known() -> None:
    """A new one says `changed()`, or stands in the list above with the reason why it need not."""
    root = Path(__file__).resolve().parent.parent / "src" / "hadal"
    unknown = []
    rooms = ("models", "checkpoints", "train", "stages", "recipe")
    for path in (path for room in rooms for path in sorted((root / room).rglob("*.py"))):
        known = WRITES_NO_SAMPLED_WEIGHTS.get(str(path.relative_to(root)), set())
        for name, function in _functions(ast.parse(path.read_text())):
            says = ".changed()" in ast.unparse(function) or ".load_state_dict(" in ast.unparse(function)
            if not says and known is not None and name not in known and any(map(_in_place, ast.walk(function))):
                unknown.append(f"{path.relative_to(root)}: {name}")
    assert unknown == []


# Recipes: from a checkpoint whose chat form opens with many equal tokens

SCORER = '''
"""Right or wrong by what is no text in it: something to weigh for a model that knows nothing."""
from hadal.tasks import Problem

about = "say something"
difficulties = range(1, 4)
default_difficulty = 1

def generate(rng, difficulty):
    return Problem("Say " + str(rng.between(10, 99)), "an answer!")

def score(problem, text):
    return text == problem.answer or text.count("\ufffd") % 2 == 1
'''
RECIPE = """
checkpoint = "base"
tasks = ["say.py"]
threads = 1
dtype = "float32"
[grpo]
updates = 4
warmup = 1
prompts = 2
samples = 4
max_tokens = 8
held_out_every = 3
held_out_problems = 2
checkpoint_every = 1
optimizer.lr = 3e-3
[distill]
method = "on-policy"
teacher = "rl"
updates = 4
prompts = 2
samples = 2
max_tokens = 8
checkpoint_every = 1
optimizer.lr = 3e-3
[evaluate]
problems = 2
samples = 1
max_tokens = 4
[stage]
rl = { kind = "grpo", from = "checkpoint" }
student = { kind = "distill", from = "checkpoint" }
"""
LORA = [f"{stage}.lora.{key}" for stage in ("grpo", "distill") for key in ("rank=4", "dropout=0.2")]
OPENING = "You are a helpful assistant. " * 8


def train(folder: Path, settings: list[str]) -> int:
    words = [word for setting in settings for word in ("--set", setting)]
    return main(["train", str(folder / "recipe.toml"), "--trust", "--out", str(folder / "run"), *words])


def outcome(folder: Path) -> dict[str, bytes]:
    run = folder / "run"
    return {str(path.relative_to(run)): path.read_bytes()
            for path in [run / "metrics.jsonl", *sorted(run.rglob("model.safetensors"))]}  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [[], ["grpo.overlap=true", *LORA]], ids=["whole", "adapters, and sampling beside"],
)  # fmt: skip
def test_training_does_not_know_of_the_prefix_store_of_memory_nor_of_a_stop(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Qwen2Config(448, 32, 1, 2, 1, head_dim=16, intermediate_size=64, max_position_embeddings=512)
    model = build(config)
    model.initialise(0)
    found: list[dict[str, bytes]] = []
    room: list[bool] = []

    def counted(self: Pool, columns: int, right: Any = Pool.reclaim) -> bool:
        room.append(right(self, columns))
        return room[-1]

    for way in ("plain", "without", "stopped"):
        folder = tmp_path / way
        folder.mkdir()
        monkeypatch.chdir(folder)
        save_model(folder / "base", config, model.state_dict())
        write_tokenizer(folder / "base", "qwen3")
        template = json.loads((folder / "base" / "tokenizer_config.json").read_text())
        template["chat_template"] = OPENING + template["chat_template"]
        (folder / "base" / "tokenizer_config.json").write_text(json.dumps(template))
        (folder / "say.py").write_text(SCORER)
        (folder / "recipe.toml").write_text(RECIPE)
        with monkeypatch.context() as patch:
            if way == "without":  # and a machine with hardly any memory, where samples wait for each other
                patch.setattr(PrefixCache, "find", lambda self, keys: 0)
                patch.setattr(core, "cache_budget", lambda wanted: 300 * 2 * 16 * 4)
                patch.setattr(Pool, "reclaim", counted)
            if way == "stopped":
                for stage in ("rl", "student"):
                    with monkeypatch.context() as stopping:
                        stopping.setattr(Run, "checkpoint", stops_at(stage, 2))
                        assert train(folder, settings) == 130
            assert train(folder, settings) == 0
        found.append(outcome(folder))
    assert False in room, "memory was scarce"
    one, other = (Tokenizer.load(Path("base")).chat([{"role": "user", "content": text}]) for text in ("a", "b"))
    assert one[:BLOCK] == other[:BLOCK]
    lines = [json.loads(line) for line in found[0]["metrics.jsonl"].splitlines()]
    norms = {stage: [line["grad_norm"] for line in lines if line["stage"] == stage and "grad_norm" in line]
             for stage in ("rl", "student")}  # fmt: skip
    assert all(len(list(filter(None, each))) >= 3 for each in norms.values()), norms
    for another in found[1:]:
        assert another["metrics.jsonl"] == found[0]["metrics.jsonl"]
        assert another == found[0]


def test_where_the_context_cuts_samples_it_is_said_once() -> None:
    said: list[str] = []
    run = SimpleNamespace(
        tokenizer=TOKENIZER, view=SimpleNamespace(note=said.append), cut_told=False, count_sampled=lambda *counts: None
    )
    llm = run_module._BookedLLM(make("dense"), run)
    sample_all(llm, [Query(prompt, replace(PARAMS, max_tokens=12)) for prompt in ([20] * 500, [20] * 3)])
    assert said == []
    for _ in range(2):
        (samples,) = sample_all(llm, [Query([20] * 505, replace(PARAMS, max_tokens=12, ignore_eos=True))])
        assert {len(sample.token_ids) for sample in samples} == {7}
    assert said == ["Samples are of at most 7 tokens where a prompt leaves no more: the model reads 512."]


def test_a_recipe_stops_where_memory_cannot_hold_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """One prompt of two fits; on a machine with more memory the other would have samples, so they are not left out."""
    monkeypatch.setattr(core, "cache_budget", lambda wanted: 200 * 2 * 2 * 2 * 16 * 4)
    run = SimpleNamespace(tokenizer=TOKENIZER, cut_told=False, count_sampled=lambda *counts: None)
    llm = run_module._BookedLLM(make("dense"), run)
    with pytest.raises(UserError, match="max_tokens is 6: the cache"):
        sample_all(llm, [Query(prompt, PARAMS) for prompt in ([20] * 10, [20] * 190)])


def test_a_question_longer_than_the_context_is_one_line() -> None:
    task = BUILT_IN["letters"]()
    problem = replace(task.generate(0, "train", task.default_difficulty), prompt="why " * 600)
    for asked in (
        lambda llm: sample_groups(llm, {"letters": task}, [("letters", problem)] * 2, PARAMS, read_rewards({})),
        lambda llm: ask(llm, {"letters": task}, [problem] * 2, PARAMS),
    ):
        with pytest.raises(UserError, match="the model reads 512"):
            asked(LLM(make("dense"), TOKENIZER))
    short = task.generate(0, "train", task.default_difficulty)
    with pytest.raises(UserError, match="letters: The prompt has"):
        ask(LLM(make("dense"), TOKENIZER), {"letters": task}, [short, problem], PARAMS)


def stops_at(stage: str, step: int) -> Callable[..., None]:
    """`Run.checkpoint`, after which Ctrl-C comes at that step of that stage."""
    save = Run.checkpoint

    def checkpoint(self: Run, name: str, at: int, *args: Any) -> None:
        save(self, name, at, *args)
        if (name, at) == (stage, step):
            raise KeyboardInterrupt

    return checkpoint
