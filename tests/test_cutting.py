"""An update's gradient is the same however it is cut into passes, in every trainer, auxiliary losses included."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hadal.engine import LLM, Sample
from hadal.models.build import build
from hadal.models.config import ModelConfig
from hadal.models.decoder import Decoder
from hadal.models.deepseek.config import DeepseekConfig, DeepseekV2Config
from hadal.models.deepseek.router import routers
from hadal.stages.sft import Config as SftConfig
from hadal.stages.sft import gradients
from hadal.tasks import BUILT_IN, Rng
from hadal.tasks.words import build_tokenizer
from hadal.train.algorithms import find
from hadal.train.conversations import Conversation, packed
from hadal.train.corpus import Batch
from hadal.train.distillation import distillation_loss
from hadal.train.losses import pretraining_loss
from hadal.train.rl import RLConfig, Trainer
from hadal.train.rollouts import pack

SIZE = (64, 32, 2, 2)
WIDTHS = {"moe_intermediate_size": 16, "n_routed_experts": 4, "kv_lora_rank": 16, "aux_loss_alpha": 0.5}
V3 = DeepseekConfig(*SIZE, intermediate_size=64, num_nextn_predict_layers=1, first_k_dense_replace=0, **WIDTHS)
V2 = DeepseekV2Config(*SIZE, intermediate_size=64, first_k_dense_replace=0, **WIDTHS)
CONFIGS = pytest.mark.parametrize("config", [V3, V2], ids=["v3", "v2"])
FORBIDDEN = torch.tensor([0, 3])


def fresh(config: ModelConfig, seed: int = 0) -> Decoder:
    model = build(config).double()
    model.initialise(seed)
    return model.train()


def taken(model: Decoder) -> dict[str, Tensor]:
    """The gradients so far, which are then forgotten; and the routers' loads."""
    out = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert any(".gate.weight" in name for name in out)
    model.zero_grad()
    for number, router in enumerate(routers(model)):
        out[f"load {number}"] = router.load.double()
        router.load.zero_()
    return out


def alike(found: list[dict[str, Tensor]], but: str = "") -> None:
    for other in found[1:]:
        assert found[0].keys() == other.keys()
        for name, one in found[0].items():
            if not but or but not in name:
                torch.testing.assert_close(other[name], one, rtol=1e-4, atol=2e-6, msg=name)


def talks(count: int = 24) -> list[Conversation]:
    """Of different lengths, some with several answers, some that learn a single token."""
    rng, out = Rng("talks"), []
    for i in range(count):
        n = rng.between(4, 17)
        begin = rng.between(1, n - 1)
        spans = [(begin, n)] if i % 3 else [(1, 2), (n - 1, n)]
        out.append(Conversation([rng.between(4, 60) for _ in range(n)], spans))
    return out


@CONFIGS
@pytest.mark.parametrize(
    ("method", "checkpointed"), [("sft", False), ("sft", True), ("logits", False), ("on-policy", False)]
)
def test_fine_tuning_and_distillation(method: str, config: ModelConfig, checkpointed: bool) -> None:
    """Balance losses of each conversation, and the loss of the token after the next one, in 1, 4 and 16 passes."""
    model, teacher = fresh(config), fresh(config, 1).eval()
    model.checkpoint_activations = checkpointed

    def objective(model: Decoder, batch: Batch) -> tuple[Tensor, Tensor]:
        if method == "sft":
            return pretraining_loss(model, batch, FORBIDDEN, 0.3)
        return distillation_loss(model, teacher, batch, FORBIDDEN, reverse=method == "on-policy")

    chosen, found, losses, passes = talks(), [], [], []
    for tokens in (1000, 64, 17):
        passes.append(len(packed(chosen, tokens, 2)))
        losses.append(gradients(model, chosen, objective, 2, SftConfig(pass_tokens=tokens)))
        found.append(taken(model))
    assert passes[0] == 1 and 4 <= passes[1] < 8 and passes[2] >= 12
    alike(found)
    assert losses[1:] == pytest.approx(losses[:1] * 2)


@CONFIGS
@pytest.mark.parametrize(("name", "checkpointed"), [("grpo", False), ("grpo", True), ("gspo", False)])
def test_reinforcement(name: str, config: ModelConfig, checkpointed: bool) -> None:
    """In 1, 4 and 16 micro-batches, each with the prompts of its responses. Choices are counted where they are made."""
    tokenizer = build_tokenizer([BUILT_IN["letters"]()])
    model = fresh(replace(config, vocab_size=tokenizer.size))
    model.checkpoint_activations = checkpointed
    llm, rng = LLM(model, tokenizer), Rng("responses")
    prompts = [[rng.between(20, 60) for _ in range(n)] for n in (3, 1, 7, 12)]
    items = []
    for i in range(16):
        ids = [rng.between(20, 60) for _ in range(rng.between(3, 8))]
        items.append((prompts[i % 4], Sample(ids, [-4.0] * len(ids), "", "stop"), [-0.5, 1.0][(i // 4 + i) % 2]))
    found, passes = [], []
    for tokens in (1000, 32, 1):
        passes.append(len(pack(items, tokenizer.pad_id, tokens)))
        rl = RLConfig(algorithm=name, micro_tokens=tokens, max_tokens=8)
        trainer = Trainer(llm, rl, find(name), rl.settings, None, defaultdict(float))
        assert trainer.add_gradients(items, {}, first=True)
        found.append(taken(model))
    assert passes[0] == 1 and 3 <= passes[1] <= 5 and passes[2] == 16
    alike(found, but="load")


def test_what_a_response_and_its_prompt_weigh_is_one_sequence_of_the_update() -> None:
    """The balance losses of an update add up to that of sequences that each weigh the same: 1 where loads are even."""
    tokenizer = build_tokenizer([BUILT_IN["letters"]()])
    config = replace(V3, vocab_size=tokenizer.size, n_routed_experts=2, num_experts_per_tok=2)  # all visit all alike
    model, told = fresh(config), []
    for router in routers(model)[:2]:  # not the module for multi-token prediction, which RL leaves alone
        own = router._balance_loss
        router._balance_loss = lambda *a, own=own: told.append(float((loss := own(*a)).detach())) or loss
    items = [([5, 6, 7][: 1 + i % 3], Sample([20 + i] * (2 + i), [-4.0] * (2 + i), "", "stop"), 1.0) for i in range(6)]
    for tokens in (1000, 1):
        told.clear()
        rl = RLConfig(algorithm="grpo", micro_tokens=tokens, max_tokens=8)
        Trainer(LLM(model, tokenizer), rl, find("grpo"), rl.settings, None, defaultdict(float)).add_gradients(
            items, {}, first=True
        )
        assert sum(told) == pytest.approx(2.0, rel=1e-6)  # of two layers
