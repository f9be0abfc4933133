"""A model with adapters is sampled from as fast as one without: no adapter is multiplied with beside its matrix."""

from __future__ import annotations

import copy
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from owned import own_bytes
from small_chain import write_chain
from test_engine_exact import TOKENIZER
from test_lora import adapted, targets
from test_parity import CONFIGS
from test_resume import killed_ends_as_whole
from torch import Tensor
from updates import rl_update

from hadal.cli import main
from hadal.engine import LLM, Engine, SamplingParams
from hadal.models.build import build
from hadal.models.decoder import Decoder
from hadal.models.dense.config import DenseConfig
from hadal.models.lora import LoraConfig, LoraExperts, LoraLinear, attach, merge
from hadal.models.packed import merged_copy, packed_bytes, packed_copy
from hadal.tasks import BUILT_IN
from hadal.tasks.words import build_tokenizer
from hadal.train.curriculum import Curriculum
from hadal.train.optim import OptimizerConfig
from hadal.train.optim.flat import FlatOptimizer
from hadal.train.overlap import follow, still_copy
from hadal.train.rl import RLConfig

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = [[5, 9, 33, 2], [7, 7, 40, 41, 8, 3, 20]]
PARAMS = SamplingParams(max_tokens=10, seed=3, n=3, logprobs=0, logprobs_of="sampled")


@pytest.fixture
def no_adapter_in_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever multiplies with an adapter while an engine makes a step, in the same thread, fails."""
    here = threading.local()
    step = Engine.step

    def stepped(engine: Engine) -> None:
        here.sampling = True
        try:
            step(engine)
        finally:
            here.sampling = False

    monkeypatch.setattr(Engine, "step", stepped)
    for kind, name in ((LoraLinear, "forward"), (LoraExperts, "matrices")):
        plain = getattr(kind, name)

        def watched(self: Any, *x: Tensor, plain: Any = plain) -> Any:
            assert not getattr(here, "sampling", False), "an adapter was run in sampling"
            return plain(self, *x)

        monkeypatch.setattr(kind, name, watched)


def policy(name: str, seed: int = 0) -> Decoder:
    config = CONFIGS[name]
    return adapted(config, LoraConfig(3, 5.0, targets=targets(config)), seed)


def merged(model: Decoder) -> Decoder:
    plain = copy.deepcopy(model)
    merge(plain)
    return plain.eval()


def samples(model: Decoder) -> list[Any]:
    llm = LLM(model, TOKENIZER)
    llm.engine.forbidden = llm.engine.sampler.forbidden = llm.engine.forbidden[:0]
    return [sample for output in llm.generate(PROMPTS, PARAMS) for sample in output.outputs]


@pytest.mark.parametrize("name", ["qwen2", "qwen2-untied-yarn", "v2", "v3"])
@pytest.mark.usefixtures("no_adapter_in_sampling")
def test_adapters_are_sampled_from_as_if_merged(name: str) -> None:
    """With adapters everywhere: the head and experts among them, and MLA's matrix that attention multiplies itself."""
    model = policy(name)
    found, expected = samples(model), samples(merged(model))
    assert found == samples(model)
    assert [s.token_ids for s in found] == [s.token_ids for s in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    if CONFIGS[name].tie_word_embeddings:  # then no matrix keeps another form than a packed copy of the merged one
        assert found == samples(packed_copy(merged(model), "float32", head="float32:plain")[0])


@pytest.mark.usefixtures("no_adapter_in_sampling")
def test_what_is_sampled_follows_the_adapters() -> None:
    model = policy("qwen2")
    optimizer = FlatOptimizer(model, OptimizerConfig(lr=1e-2, muon_lr=0.0))
    llm = LLM(model, TOKENIZER)
    before = llm.generate(PROMPTS, PARAMS)
    for _ in range(2):
        optimizer.grad.normal_(generator=torch.Generator().manual_seed(1))
        optimizer.step()
        found = llm.generate(PROMPTS, PARAMS)
        assert found == LLM(model, TOKENIZER).generate(PROMPTS, PARAMS) != before
        before = found


def test_a_merged_copy_owns_what_is_adapted_and_shares_the_rest() -> None:
    config = CONFIGS["qwen2-untied-yarn"]
    model = adapted(config, LoraConfig(3, targets=["q_proj", "down_proj"]))
    found = merged_copy(model)
    layers = zip(model.layers, found.layers, strict=True)
    for theirs, ours in layers:
        assert ours.mlp.gate_up_proj.weight.data_ptr() == theirs.mlp.gate_up_proj.weight.data_ptr()
        assert ours.input_norm.weight.data_ptr() == theirs.input_norm.weight.data_ptr()
    assert found.packed_head.weight.data_ptr() == model.head.weight.data_ptr()
    assert found.embed.weight.data_ptr() == model.embed.weight.data_ptr()
    own = sum(layer.attention.qkv_proj.weight.nbytes + layer.mlp.down_proj.weight.nbytes for layer in model.layers)
    assert own_bytes(found, model) == own < packed_bytes(found)


def test_merging_rounds_once() -> None:
    """In bf16 a matrix and its adapter are added in float32, and only their sum is rounded."""
    model = policy("qwen2").bfloat16()
    found = merged_copy(model)
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            down, up = (torch.cat([p.data.float() for p in held.values()]) for held in (module.lora_A, module.lora_B))
            if len(module.scale) == 1:
                exact = module.weight.float() + module.scale[next(iter(module.scale))] * up @ down
                packed = found.get_submodule(name)
                product = packed(torch.eye(module.in_features, dtype=torch.bfloat16)).T  # the matrix itself
                assert torch.equal(product, exact.bfloat16())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_trainer_and_sampler_of_adapters_agree(dtype: torch.dtype, bound: float) -> None:
    tasks = {"letters": BUILT_IN["letters"]()}
    tokenizer = build_tokenizer(list(tasks.values()))
    model = build(DenseConfig(tokenizer.size, 32, 2, 2, 1, 16, 64))
    model.initialise(0)
    model.to(dtype)
    attach(model, LoraConfig(4, dropout=0.0), 0)
    model.train()
    optimizer = FlatOptimizer(model, OptimizerConfig(lr=1e-2, muon_lr=0.0), dtype)
    llm, curriculum = LLM(model, tokenizer), Curriculum(tasks)
    config = RLConfig(prompts=3, samples=4, max_tokens=12, options={"count_all": True, "kl": 0.01})
    reference = still_copy(model)
    for step in range(3):
        metrics = rl_update(llm, optimizer, tasks, curriculum, config, 0, step, reference=reference).metrics
        assert metrics["mismatch"] < bound, (step, metrics)
        optimizer.grad.normal_(generator=torch.Generator().manual_seed(step))
        optimizer.step()  # away from B = 0


def test_a_copy_that_stays_shares_what_is_frozen() -> None:
    model = policy("qwen2")
    still = still_copy(model)
    frozen = [(p, q) for p, q in zip(model.parameters(), still.parameters(), strict=True) if not p.requires_grad]
    moved = [(p, q) for p, q in zip(model.parameters(), still.parameters(), strict=True) if p.requires_grad]
    assert frozen and all(p.data_ptr() == q.data_ptr() for p, q in frozen)
    assert moved and all(p.data_ptr() != q.data_ptr() and not q.requires_grad for p, q in moved)
    with torch.no_grad():
        for p, _ in moved:
            p.add_(1)
    assert not any(torch.equal(p, q) for p, q in moved)
    seen = still.generation
    follow(still, model)
    assert all(torch.equal(p, q) for p, q in moved) and still.generation > seen


@pytest.mark.usefixtures("no_adapter_in_sampling")
def test_no_stage_samples_through_adapters(tmp_path: Path) -> None:
    """RL, its sampler beside training, monitored problems, and on-policy distillation."""
    sets = ["grpo.lora.rank=2", "distill.lora.rank=2", "grpo.overlap=true"]
    words = [word for setting in sets for word in ("--set", setting)]
    assert main(["train", str(write_chain(tmp_path)), "--trust", "--out", str(tmp_path / "run"), *words]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("held_out" in line for line in lines)
    assert max(line["mismatch"] for line in lines if "mismatch" in line) < 0.05


@pytest.mark.parametrize("overlap", ["false", pytest.param("true", marks=pytest.mark.long)])
def test_adapters_resume_to_the_same_bits(overlap: str, tmp_path: Path) -> None:
    settings = ("grpo.lora.rank=4", "grpo.optimizer.lr=1e-2", f"grpo.overlap={overlap}", "pretrain.steps=40")
    killed_ends_as_whole(tmp_path, *settings)
