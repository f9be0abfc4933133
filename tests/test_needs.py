"""The memory that a recipe's stages are told to need, against the bytes of the tensors that are alive."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from owned import own_bytes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hadal.cost import memory
from hadal.engine import LLM, Sample, SamplingParams
from hadal.machine.memory import resident_memory
from hadal.models.build import build
from hadal.models.config import ModelConfig
from hadal.models.decoder import Decoder
from hadal.models.deepseek.config import DeepseekConfig
from hadal.models.dense.config import DenseConfig, Qwen2Config
from hadal.models.lora import LoraConfig, adapter_size, attach
from hadal.models.packed import merged_copy
from hadal.recipe.config import Recipe, read_recipe
from hadal.recipe.plan import Room
from hadal.stages import find
from hadal.stages.common.needs import ComputedRates, Needs, Scene
from hadal.stages.sft import gradients
from hadal.tasks import Problem, Reward
from hadal.text.tokenizer import Tokenizer
from hadal.train.conversations import Conversation
from hadal.train.losses import pretraining_loss
from hadal.train.optim.flat import FlatOptimizer
from hadal.train.rl import Batch, train_on
from hadal.train.rollouts import Group

pytestmark = pytest.mark.usefixtures("one_thread")
DENSE = DenseConfig(12_000, 96, 3, 6, 2, 16, 256, max_position_embeddings=512)
LATENT = DeepseekConfig(
    12_000, 96, 3, 6, 256, 64, n_routed_experts=4, num_experts_per_tok=2, kv_lora_rank=32, qk_nope_head_dim=16,
    qk_rope_head_dim=16, v_head_dim=16, max_position_embeddings=512,
)  # fmt: skip
PROMPT = 40


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is on, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: dict[int, weakref.finalize[Any, Any]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in self.seen and id(storage) not in given:
                    self.now += storage.nbytes()
                    self.seen[id(storage)] = weakref.finalize(storage, self.gone, id(storage), storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def gone(self, key: int, nbytes: int) -> None:
        self.now -= nbytes
        del self.seen[key]


@pytest.fixture
def tensors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what is measured and is no tensor."""
    monkeypatch.setattr(memory, "LIBRARIES", 0)
    monkeypatch.setattr(memory, "HEAP_LOSS", 0.0)
    monkeypatch.setattr(memory, "MANY_LOGITS", 1 << 18)  # for both: losses reads it where it is


def recipe(dtype: str = "float32", **stage: Any) -> Recipe:
    table = {"kind": "grpo", "from": "checkpoint", **stage}
    return read_recipe({"tasks": ["sums"], "checkpoint": "x", "dtype": dtype, "device": "cpu", "stage": {"rl": table}})


def scene(config: ModelConfig, recipe: Recipe) -> Scene:
    return Scene(recipe, config, config.vocab_size, PROMPT, ComputedRates(1e9))


def needs(config: ModelConfig, recipe: Recipe) -> memory.Memory:
    found: Needs = find(recipe.stages[0].kind).needs(recipe.stages[0], scene(config, recipe))
    return found.memory


def held(model: Decoder, optimizer: FlatOptimizer) -> dict[str, int]:
    """Bytes of what lives all the time."""
    tensors = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
               for t in (*model.parameters(), *model.buffers())}  # fmt: skip
    masters = 0 if optimizer.compute is optimizer.master else optimizer.master.nbytes
    return {
        "weights": sum(tensors.values()),
        "gradients": optimizer.grad.nbytes,
        "optimiser": sum(moment.nbytes for moment in optimizer.moments.values()) + masters,
    }


def prepared(config: ModelConfig, recipe: Recipe) -> tuple[Decoder, FlatOptimizer]:
    stage, dtype = recipe.stages[0].config, getattr(torch, recipe.dtype)
    model = build(config)
    model.initialise(0)
    if stage.lora.rank:
        attach(model.to(dtype), stage.lora, 0)
    optimizer = FlatOptimizer(model.to(dtype) if stage.lora.rank else model, stage.optimizer, dtype)
    model.to(dtype)
    model.train().checkpoint_activations = stage.checkpoint_activations
    return model, optimizer


def updated(config: ModelConfig, recipe: Recipe, lengths: list[int]) -> tuple[dict[str, int], int]:
    """What is held, and the most that an update by responses of these lengths takes besides."""
    model, optimizer = prepared(config, recipe)
    stage = recipe.stages[0].config
    llm = LLM(model, Tokenizer.from_words([]))
    llm.engine.forbidden = llm.engine.forbidden[:0]
    draw = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(100, config.vocab_size, (count,), generator=draw).tolist()

    groups, size = [], stage.samples
    for begin in range(0, len(lengths), size):
        samples = [Sample(ids(n), [-9.0] * n, "", "length") for n in lengths[begin : begin + size]]
        rewards = [Reward(float(i % 2), {"accuracy": float(i % 2)}) for i in range(size)]
        groups.append(Group("none", Problem("", ""), ids(PROMPT), samples, rewards))
    advantages = torch.tensor([[1.0, -1.0] * (size // 2)] * len(groups))
    before = held(model, optimizer)
    with Alive() as alive:
        train_on(llm, optimizer, Batch(groups, advantages, 0.0), stage, 0, 0)
    return before, alive.peak


SHAPES = {
    "one pass": {"prompts": 2, "samples": 4, "max_tokens": 64},
    "longer than attention keeps": {"prompts": 2, "samples": 2, "max_tokens": 200},
    "several passes": {"prompts": 2, "samples": 4, "max_tokens": 96, "micro_tokens": 256},
    "activations again": {"prompts": 2, "samples": 4, "max_tokens": 64, "checkpoint_activations": True},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.usefixtures("tensors_alone")
def test_an_update_of_rl_takes_what_is_told(name: str, rank: int, dtype: str) -> None:
    plan = recipe(dtype, **SHAPES[name], **({"lora": {"rank": rank}} if rank else {}))
    config = plan.stages[0].config
    told = needs(DENSE, plan)
    responses = config.prompts * config.samples
    found, peak = updated(DENSE, plan, [config.max_tokens] * responses)
    if responses * config.max_tokens > config.micro_tokens:  # short ones may take more: a pass has more rows then
        peak = max(peak, updated(DENSE, plan, [config.micro_tokens // responses] * responses)[1])
    for part, count in found.items():
        assert told.held[part] == pytest.approx(count, rel=0.02), part
    assert peak == pytest.approx(told.peaks["training"], rel=0.2), (told.describe(), peak / 1e6)


@pytest.mark.usefixtures("tensors_alone")
def test_experts_and_latent_attention_take_what_is_told() -> None:
    plan = recipe(**SHAPES["one pass"])
    found, peak = updated(LATENT, plan, [64] * 8)
    told = needs(LATENT, plan)
    assert told.held["weights"] == pytest.approx(found["weights"], rel=0.02)
    assert peak == pytest.approx(told.peaks["training"], rel=0.25), (told.describe(), peak / 1e6)


@pytest.mark.parametrize(
    ("ask", "dtype"),
    [((8, 4, 40), "float32"), ((8, 4, 40), "bfloat16"), ((60, 1, 30), "float32")],
)
@pytest.mark.usefixtures("tensors_alone")
def test_sampling_takes_what_is_told(ask: tuple[int, int, int], dtype: str) -> None:
    """Its cache above all, which grows with the responses and keeps prompts; all of them as long as they may be."""
    prompts, samples, max_tokens = ask
    config = replace(DENSE, vocab_size=2000, num_hidden_layers=1, num_key_value_heads=6)
    model = build(config)
    model.initialise(0)
    llm = LLM(model.to(getattr(torch, dtype)).eval(), Tokenizer.from_words([]))
    llm.engine.forbidden = llm.engine.sampler.forbidden = llm.engine.forbidden[:0]
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(100, 2000, (prompts, PROMPT), generator=draw).tolist()
    told = scene(config, recipe(dtype)).sampling_memory(config, prompts, samples, max_tokens)
    params = SamplingParams(max_tokens=max_tokens, n=samples, seed=0, ignore_eos=True, logprobs=0)
    llm.generate(rows[0], SamplingParams(max_tokens=2))  # operators are tried here
    with Alive() as alive:
        llm.generate(rows, params.spread(prompts))
    assert 0.6 * told < alive.peak < 1.1 * told, (alive.peak, told)  # not all columns of a run are ever in use


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.usefixtures("tensors_alone")
def test_fine_tuning_takes_what_is_told(rank: int) -> None:
    """On-policy distillation's passes are of this kind as well: whole conversations, several in a row."""
    plan = recipe(kind="sft", data=["rows.jsonl"], pass_tokens=400, **({"lora": {"rank": rank}} if rank else {}))
    config = plan.stages[0].config
    model, optimizer = prepared(DENSE, plan)
    chosen = [Conversation(list(range(100, 200)), [(1, 100)]) for _ in range(4)]
    forbidden = torch.zeros(0, dtype=torch.long)
    before = held(model, optimizer)
    with Alive() as alive:
        gradients(model, chosen, lambda m, batch: pretraining_loss(m, batch, forbidden), 0, config)
    told = memory.training_memory(DENSE, 4, [memory.Pass(4, 100)], False, adapters_of(rank))
    for part, count in before.items():
        assert told.held[part] == pytest.approx(count, rel=0.02), part
    assert alive.peak == pytest.approx(told.peaks["training"], rel=0.2)


def adapters_of(rank: int) -> int:
    return adapter_size(DENSE, LoraConfig(rank)) if rank else 0


def test_rows_that_do_not_exist_are_not_counted() -> None:
    """The 0.5B of Qwen2.5: four samples of 16 tokens took 57.7 GB by the sums, and one token 392 GB."""
    config = Qwen2Config(151_936, 896, 24, 14, 2, 64, 4864, max_position_embeddings=32_768, tie_word_embeddings=True)
    few = {"algorithm": "grpo", "prompts": 2, "samples": 2, "held_out_problems": 4}
    short = needs(config, recipe(**few, max_tokens=16)).total
    assert needs(config, recipe(**few, max_tokens=1)).total <= short < 11e9  # 16 bytes a parameter are 7.9 GB
    many = {"prompts": 32, "samples": 16, "max_tokens": 512}
    totals = [needs(config, recipe(**many, micro_tokens=tokens)).total for tokens in (512, 1024, 4096, 8192, 10**9)]
    assert totals == sorted(totals) and totals[1] < totals[2] < totals[3] < totals[4]
    assert needs(config, recipe(**many, micro_tokens=10**9)) == needs(config, recipe(**many, micro_tokens=1 << 18))
    parts = {"minibatches": 4, "micro_tokens": 1 << 18}
    assert needs(config, recipe(**many, **parts)).total < totals[4]  # a minibatch's responses are all that a pass has


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_copies_are_told(dtype: str) -> None:
    width = 4 if dtype == "float32" else 2
    model = build(DENSE)
    model.initialise(0)
    model.to(getattr(torch, dtype))
    whole = sum(p.numel() for p in model.parameters())
    plain = needs(DENSE, recipe(dtype)).held
    assert plain.keys() == {"weights", "gradients", "optimiser"}
    found = needs(DENSE, recipe(dtype, overlap=True, options={"kl": 0.1})).held
    assert found["what is sampled from"] == found["the reference"] == width * whole
    attach(model, LoraConfig(4, targets=["q_proj", "up_proj"]), 0)
    own, small = own_bytes(merged_copy(model), model), width * adapters_of_targets()
    lora = {"rank": 4, "targets": ["q_proj", "up_proj"]}
    adapted = needs(DENSE, recipe(dtype, lora=lora)).held
    assert adapted["what is sampled from"] == own
    more = needs(DENSE, recipe(dtype, lora=lora, overlap=True, options={"kl": 0.1})).held
    assert more["what is sampled from"] == 2 * own + small and more["the reference"] == small


def adapters_of_targets() -> int:
    return adapter_size(DENSE, LoraConfig(4, targets=["q_proj", "up_proj"]))


def test_the_teacher_and_its_distributions_are_told() -> None:
    stages = {"kind": "distill", "teacher": "checkpoint", "data": [], "max_tokens": 32, "prompts": 2, "samples": 2}
    logits = needs(DENSE, recipe(**stages | {"method": "logits", "data": ["rows.jsonl"]}))
    on_policy = needs(DENSE, recipe(**stages, method="on-policy", lora={"rank": 4}))
    model = build(DENSE)
    assert logits.held["the teacher"] == on_policy.held["the teacher"] == sum(4 * p.numel() for p in model.parameters())
    assert on_policy.held["what is sampled from"] > 0 and "sampling" in on_policy.peaks


def test_the_process_itself_is_told() -> None:
    held = torch.ones(50_000_000)
    assert resident_memory() > held.nbytes
    room, without = Room("cpu"), needs(DENSE, recipe())
    assert room.process > held.nbytes
    room.process = 300_000_000
    told = room.of(Needs(without, 1.0))
    assert told.total == without.total + 300_000_000 and "the process 300 MB" in told.describe()
