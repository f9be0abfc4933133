"""The model families against transformers with the same weights: logits, loss, gradients, greedy tokens, files.

Small random configs of each family, in float32. Where transformers and the released modelling code differ, the
released one decides, and the test says so.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from hadal.checkpoints.load import load_model
from hadal.checkpoints.save import save_model
from hadal.errors import UserError
from hadal.models.build import build
from hadal.models.config import ModelConfig
from hadal.models.decoder import Decoder
from hadal.models.deepseek.config import DeepseekConfig, DeepseekV2Config
from hadal.models.deepseek.router import routers
from hadal.models.dense.config import DenseConfig, LlamaConfig, MistralConfig, Qwen2Config, SmolLM3Config
from hadal.models.families import from_dict
from hadal.models.gemma3.config import Gemma3Config
from hadal.models.names import to_released
from hadal.ops.rope import Llama3Scaling, YarnScaling

VOCABULARY, LENGTH = 97, 64
BASE: dict[str, Any] = {"vocab_size": VOCABULARY, "num_hidden_layers": 3, "max_position_embeddings": 256}
DENSE: dict[str, Any] = BASE | {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 6, "head_dim": 8}
LATENT: dict[str, Any] = BASE | {
    "hidden_size": 48, "intermediate_size": 80, "moe_intermediate_size": 24, "kv_lora_rank": 20, "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8, "v_head_dim": 10, "tie_word_embeddings": False, "n_shared_experts": 2,
}  # fmt: skip
YARN = YarnScaling(8.0, 16, mscale=1.0, mscale_all_dim=1.0)  # 64 tokens are four times the original length
LITE_YARN = YarnScaling(40.0, 32, mscale=0.707, mscale_all_dim=0.707)
GROUPS: dict[str, Any] = {"n_routed_experts": 16, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2}
CONFIGS: dict[str, ModelConfig] = {
    "v2-lite": DeepseekV2Config(
        **LATENT, n_routed_experts=8, num_experts_per_tok=3, rope_scaling=LITE_YARN, aux_loss_alpha=0.001
    ),
    "v2": DeepseekV2Config(
        **LATENT, **GROUPS, q_lora_rank=24, topk_method="group_limited_greedy", routed_scaling_factor=4.0,
        rope_scaling=YARN,
    ),
    "v3": DeepseekConfig(**LATENT, **GROUPS, q_lora_rank=24, routed_scaling_factor=2.5, rope_scaling=YARN),
    "v3-unequal-mscale": DeepseekConfig(
        **LATENT, attention_bias=True, q_lora_rank=24, rope_scaling=YarnScaling(4.0, 32, mscale=1.5, mscale_all_dim=0.5)
    ),
    "v3-plain": DeepseekConfig(
        **LATENT | {"tie_word_embeddings": True}, first_k_dense_replace=0, norm_topk_prob=False, rms_norm_eps=1e-5
    ),
    "qwen2": Qwen2Config(**DENSE, rms_norm_eps=1e-5),
    "qwen2-untied-yarn": Qwen2Config(**DENSE, tie_word_embeddings=False, rope_scaling=YarnScaling(4.0, 16)),
    "qwen3": DenseConfig(**DENSE, tie_word_embeddings=False),
    "qwen3-biased": DenseConfig(**DENSE, attention_bias=True, num_key_value_heads=6),
    "llama": LlamaConfig(**DENSE, attention_bias=True, mlp_bias=True),
    "llama3": LlamaConfig(
        **DENSE, tie_word_embeddings=False, rope_theta=500.0, rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 32)
    ),
    "mistral": MistralConfig(**DENSE, tie_word_embeddings=False, sliding_window=9),
    "mistral-without-window": MistralConfig(**DENSE, num_key_value_heads=3),
    "gemma3": Gemma3Config(
        **DENSE, num_key_value_heads=3, sliding_window=9, query_pre_attn_scalar=11, rope_local_base_freq=500.0,
        layer_types=("sliding_attention", "full_attention", "sliding_attention"),
    ),
    "smollm3": SmolLM3Config(**DENSE, no_rope_layers=(1, 0, 1), attention_bias=True, rope_theta=5e6),
}  # fmt: skip


def fresh(config: ModelConfig, seed: int = 0) -> Decoder:
    """An initialised model; what initialisation leaves at 0 or 1 is moved, so that it matters."""
    model = build(config)
    model.initialise(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        for router in routers(model):
            if router.e_score_correction_bias is not None:
                router.e_score_correction_bias.normal_(0, 0.1, generator=generator)
    return model.eval()


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(1, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def reference(folder: Path) -> Any:
    """transformers' model of a folder, every weight of which it must have found.

    SmolLM3's own padding token, which it assumes where none is named, lies behind this small vocabulary.
    """
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(data | {"pad_token_id": None}))
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return theirs


def distance(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Greatest absolute difference, and L2 norm of the difference over that of theirs."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    difference = ours - theirs
    return float(difference.abs().max()), float(difference.norm() / theirs.norm().clamp(min=1e-30))


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return CONFIGS[request.param]


def test_logits_loss_and_gradients_equal_those_of_transformers(config: ModelConfig, tmp_path: Path) -> None:
    model = fresh(config)
    save_model(tmp_path, config, model.state_dict())
    theirs = reference(tmp_path)
    assert type(theirs).__name__ == config.architecture
    ids = tokens(3, LENGTH)
    logits, expected = model.logits(model(ids)), theirs(ids).logits
    assert logits.std() > 0.05
    absolute, relative = distance(logits, expected)
    assert absolute < 1e-4 and relative < 1e-5
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    their_loss = theirs(ids, labels=ids).loss
    assert loss.item() == pytest.approx(their_loss.item(), rel=1e-4)
    loss.backward()
    their_loss.backward()
    ours = to_released({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, config)
    grads = their_gradients(theirs)
    assert ours.keys() == grads.keys()
    largest = max(float(grad.abs().max()) for grad in grads.values())
    for name, grad in grads.items():
        absolute, relative = distance(ours[name], grad)
        # A bias on keys that are not turned adds the same to all scores of a query: its gradient is rounding alone.
        none = name.endswith("k_proj.bias") and float(grad.abs().max()) < 1e-6 * largest
        assert relative < 1e-4 or (none and absolute < 1e-6 * largest), name


def their_gradients(theirs: Any) -> dict[str, Tensor]:
    """Gradients under the names of the files; transformers stacks experts as hadal does."""
    out: dict[str, Tensor] = {}
    for name, parameter in theirs.named_parameters():
        assert parameter.grad is not None, name
        if name.endswith("experts.gate_up_proj"):
            for e, grad in enumerate(parameter.grad):
                prefix = f"{name.removesuffix('gate_up_proj')}{e}."
                out[prefix + "gate_proj.weight"], out[prefix + "up_proj.weight"] = grad.chunk(2)
        elif name.endswith("experts.down_proj"):
            for e, grad in enumerate(parameter.grad):
                out[f"{name.removesuffix('down_proj')}{e}.down_proj.weight"] = grad
        else:
            out[name] = parameter.grad
    return out


def test_what_transformers_saves_is_read_back(config: ModelConfig, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict() | {"pad_token_id": None}))
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.from_pretrained(tmp_path), dtype=torch.float32
    ).eval()
    with torch.no_grad():
        for tensor in theirs.state_dict().values():
            if tensor.dim() == 1:
                tensor += 0.1 * torch.randn(tensor.shape)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="60KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    model = load_model(tmp_path / "theirs").eval()
    assert model.config == config
    ids = tokens(2, LENGTH)
    with torch.no_grad():
        absolute, relative = distance(model.logits(model(ids)), theirs(ids).logits)
    assert absolute < 1e-4 and relative < 1e-5


@torch.no_grad()
def test_greedy_tokens_are_those_of_transformers(config: ModelConfig, tmp_path: Path) -> None:
    model = fresh(config)
    save_model(tmp_path, config, model.state_dict())
    theirs = reference(tmp_path)
    prompt = tokens(2, 7)
    expected = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64, min_new_tokens=64, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    plain = prompt
    for _ in range(64):
        plain = torch.cat([plain, model.logits(model(plain)[:, -1:])[:, 0].argmax(-1, keepdim=True)], dim=1)
    cache = model.new_cache(torch.zeros(2, dtype=torch.long), 71)
    cached, hidden = prompt, model(prompt, cache)
    for _ in range(64):
        token = model.logits(hidden[:, -1]).argmax(-1, keepdim=True)
        cached, hidden = torch.cat([cached, token], dim=1), model(token, cache)
    assert torch.equal(plain, expected) and torch.equal(cached, expected)


def literal_yarn(scaling: YarnScaling, dim: int, theta: float) -> tuple[list[float], float, float]:
    """Frequencies, factor on cos and sin, factor on the softmax scale, as DeepSeek's released files compute them."""

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(scaling.factor) + 1.0

    def turns_to_channel(turns: float) -> float:
        length = scaling.original_max_position_embeddings
        return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(turns_to_channel(scaling.beta_fast)), 0)
    high = min(math.ceil(turns_to_channel(scaling.beta_slow)), dim - 1)
    out = []
    for i in range(dim // 2):
        frequency = theta ** (-2 * i / dim)
        ramp = min(max((i - low) / (high - low if high != low else 0.001), 0.0), 1.0)
        out.append(frequency / scaling.factor * ramp + frequency * (1 - ramp))
    weight, all_dim = scaling.mscale or 1.0, scaling.mscale_all_dim or 0.0
    return out, mscale(weight) / mscale(all_dim), mscale(all_dim) ** 2


@pytest.mark.parametrize(
    "scaling",
    [
        YARN,
        LITE_YARN,
        YarnScaling(40.0, 4096, mscale=1.0, mscale_all_dim=1.0),
        # Here transformers takes 0.1 ln s + 1 for the factor on cos and sin; the released files use what is given.
        YarnScaling(40.0, 4096, mscale=0.7),
        YarnScaling(40.0, 4096, mscale_all_dim=0.7),
        YarnScaling(4.0, 64, beta_fast=16.0, beta_slow=2.0),
    ],
)
def test_yarn_is_that_of_the_released_files(scaling: YarnScaling) -> None:
    config = DeepseekConfig(**LATENT, rope_scaling=scaling)
    model = build(config)
    frequencies, factor, softmax = literal_yarn(scaling, 8, 10_000.0)
    angles = torch.arange(256)[:, None] * torch.tensor(frequencies)
    torch.testing.assert_close(model.ropes[0].cos, angles.cos() * factor, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.ropes[0].sin, angles.sin() * factor, atol=1e-5, rtol=1e-5)
    assert model.layers[0].attention.scale == pytest.approx(20**-0.5 * softmax)


def test_v3_softmax_correction_is_the_reports() -> None:
    assert YarnScaling(40.0, 4096, mscale=1.0, mscale_all_dim=1.0).softmax_factor == pytest.approx(1.8739, abs=1e-4)


def test_v2_normalises_or_scales_as_its_released_code() -> None:
    """With norm_topk_prob the released V2 file leaves routed_scaling_factor out; transformers ignores the key."""
    config = DeepseekV2Config(
        **LATENT, n_routed_experts=8, num_experts_per_tok=3, norm_topk_prob=True, routed_scaling_factor=4.0
    )
    router = routers(fresh(config))[0]
    x = torch.randn(1, 5, 48, generator=torch.Generator().manual_seed(3))
    expert, weight = router(x, None)
    for n in range(5):
        scores = (router.weight @ x[0, n]).softmax(0).tolist()
        best = sorted(range(8), key=lambda e: -scores[e])[:3]
        assert set(expert[n].tolist()) == set(best)
        total = sum(scores[e] for e in best)
        for e, w in zip(expert[n].tolist(), weight[n].tolist(), strict=True):
            assert w == pytest.approx(scores[e] / total, rel=1e-5)


@pytest.mark.parametrize("name", ["v2-lite", "v2", "v3", "llama3", "qwen2-untied-yarn"])
def test_both_forms_of_rope_settings_are_read(name: str) -> None:
    config = CONFIGS[name]
    old = config.to_dict()
    assert "rope_scaling" in old and "rope_parameters" not in old
    new = {key: value for key, value in old.items() if key not in ("rope_scaling", "rope_theta")}
    scaling = dict(old["rope_scaling"])
    del scaling["type"]
    new["rope_parameters"] = scaling | {"rope_theta": old["rope_theta"]}
    older = old | {"rope_scaling": {k: v for k, v in old["rope_scaling"].items() if k != "rope_type"}}
    assert from_dict(old) == from_dict(new) == from_dict(older) == config


def test_released_configs_are_read_with_their_unused_keys() -> None:
    """The keys of R1-Distill-Qwen-1.5B's config.json; its sliding window is switched off."""
    released = {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 1536, "initializer_range": 0.02,
        "intermediate_size": 8960, "max_position_embeddings": 131072, "max_window_layers": 21, "model_type": "qwen2",
        "num_attention_heads": 12, "num_hidden_layers": 28, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 10000, "sliding_window": 4096, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.44.0", "use_cache": True, "use_mrope": False, "use_sliding_window": False,
        "vocab_size": 151936,
    }  # fmt: skip
    config = from_dict(released)
    assert isinstance(config, Qwen2Config) and config.head_dim == 128 and not config.tie_word_embeddings


def test_what_newer_model_types_leave_out_is_what_transformers_takes() -> None:
    """Mistral without the key has the first model's window, and with null none; SmolLM3 has a base of its own, Gemma 3
    two."""
    left_out = {
        "mistral": ["sliding_window"],
        "smollm3": ["no_rope_layers", "rope_theta"],
        "gemma3": ["layer_types", "sliding_window_pattern", "rope_theta", "rope_local_base_freq"],
    }
    for name, keys in left_out.items():
        data = {key: value for key, value in CONFIGS[name].to_dict().items() if key not in keys}
        ours, theirs = from_dict(data), transformers.AutoConfig.for_model(**data)
        ropes = theirs.rope_parameters
        assert ours.rope_theta == ropes.get("full_attention", ropes)["rope_theta"]
        if isinstance(ours, Gemma3Config):
            assert ours.rope_local_base_freq == ropes["sliding_attention"]["rope_theta"]
            kinds = [kind == "sliding_attention" for kind in theirs.layer_types]
            assert [ours.window(layer) > 0 for layer in range(3)] == kinds
            assert [replace(ours, num_hidden_layers=7).window(layer) for layer in range(7)] == [*[9] * 5, 0, 9]
        elif isinstance(ours, MistralConfig):
            assert ours.sliding_window == theirs.sliding_window == 4096
        else:
            assert isinstance(ours, SmolLM3Config)
            assert [ours.turns(layer) for layer in range(3)] == [bool(one) for one in theirs.no_rope_layers]
    none = from_dict(CONFIGS["mistral"].to_dict() | {"sliding_window": None})
    assert isinstance(none, MistralConfig) and none.window(0) == 0


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding_window"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "layer_types"),
        ("llama", {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ("llama", {"rope_scaling": None, "rope_parameters": {"rope_type": "yarn"}}, "factor"),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16,
                                    "surprise": 1}}, "surprise"),
        ("v3", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                 "high_freq_factor": 4.0, "original_max_position_embeddings": 32}}, "llama3"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("qwen2", {"attention_bias": True}, "attention_bias"),
        ("mistral", {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}, "layer_types"),
        ("mistral-without-window", {"attention_bias": True}, "attention_bias"),
        ("gemma3", {"layer_types": ["full_attention"]}, "layer_types"),
        ("gemma3", {"layer_types": ["full_attention", "linear_attention", "full_attention"]}, "linear_attention"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "linear"),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 8}, "sliding_window"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ("v3", {"scoring_func": "softmax"}, "scoring_func"),
        ("v3", {"topk_method": "greedy"}, "topk_method"),
        ("v2", {"topk_method": "noaux_tc"}, "topk_method"),
        ("v3", {"moe_layer_freq": 2}, "moe_layer_freq"),
        ("v3", {"rope_interleave": False}, "rope_interleave"),
        ("v3", {"num_key_value_heads": 1}, "num_key_value_heads"),
        ("v3", {"num_nextn_predict_layers": 2}, "num_nextn_predict_layers"),
        ("v3", {"n_shared_experts": None}, "n_shared_experts"),
        ("v2", {"model_type": "deepseek_v32"}, "deepseek_v32"),
    ],
)  # fmt: skip
def test_what_would_not_be_honoured_is_refused_by_name(name: str, change: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError) as caught:
        from_dict(CONFIGS[name].to_dict() | change)
    assert word in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["q_lora_rank", "kv_lora_rank", "n_group", "vocab_size", "n_routed_experts"])
def test_a_config_without_a_shape_is_refused(key: str) -> None:
    data = CONFIGS["v3"].to_dict()
    del data[key]
    with pytest.raises(UserError, match=key):
        from_dict(data)
