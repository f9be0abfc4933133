"""LoRA on every family: against the paper's formula on released tensors in transformers, against PEFT, and hostile."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_parity import CONFIGS, fresh, reference, tokens
from torch import Tensor

from hadal.checkpoints.adapters import load_adapter, save_adapter
from hadal.checkpoints.load import load_model
from hadal.checkpoints.save import save_model
from hadal.errors import UserError
from hadal.library.open import open_model
from hadal.models.cache import Cache
from hadal.models.config import ModelConfig
from hadal.models.decoder import Decoder
from hadal.models.deepseek.config import DeepseekConfig
from hadal.models.lora import LoraConfig, adapted_modules, attach, base_state, merge

FAMILIES = ["qwen2", "qwen2-untied-yarn", "qwen3-biased", "llama", "llama3", "v2-lite", "v2", "v3"]
ALL = ["gate_proj", "up_proj", "down_proj", "o_proj", "q_proj", "k_proj", "v_proj"]
LATENT = ["q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", *ALL[:3]]


def targets(config: ModelConfig) -> list[str]:
    """Every kind of linear layer that the model has."""
    if not isinstance(config, DeepseekConfig):
        return ALL if config.tie_word_embeddings else [*ALL, "lm_head"]
    absent = ("q_proj",) if config.q_lora_rank else ("q_a_proj", "q_b_proj")
    return [t for t in [*LATENT, "lm_head"] if t not in absent]


def adapted(config: ModelConfig, lora: LoraConfig, seed: int = 0) -> Decoder:
    """A model with adapters that do something."""
    model = fresh(config, seed)
    attach(model, lora, seed)
    generator = torch.Generator().manual_seed(seed + 7)
    for _, module in adapted_modules(model):
        for matrix in module.lora_B.values():
            matrix.data = 0.3 * torch.randn(matrix.shape, generator=generator)
    return model


def logits(model: Decoder, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model.logits(model(ids))


def save_both(folder: Path, model: Decoder, lora: LoraConfig) -> tuple[Path, Path]:
    base, adapter = folder / "base", folder / "adapter"
    save_model(base, model.config, base_state(model))
    save_adapter(adapter, model, lora, str(base))
    return base, adapter


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_are_the_papers_formula_on_released_matrices(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    lora = LoraConfig(3, 5.0, targets=targets(config))
    model = adapted(config, lora)
    ids = tokens(2, 40)
    found = logits(model, ids)
    assert float((found - logits(fresh(config), ids)).abs().max()) > 0.01
    base, adapter = save_both(tmp_path, model, lora)
    released, delta = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    paths = {key.removeprefix("base_model.model.").rsplit(".", 2)[0] for key in delta}
    assert {path.rsplit(".", 1)[-1] for path in paths} == set(lora.targets)
    for path in paths:
        down, up = (delta[f"base_model.model.{path}.lora_{letter}.weight"] for letter in "AB")
        assert down.shape[0] == up.shape[1] == 3
        released[f"{path}.weight"] = released[f"{path}.weight"] + 5.0 / 3 * up @ down
    save_file(released, base / "model.safetensors", metadata={"format": "pt"})
    with torch.no_grad():
        expected = reference(base)(ids).logits
    assert float((found - expected).abs().max()) < 2e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_merging_loading_and_decoding_change_nothing(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    lora = LoraConfig(2, targets=targets(config))
    model = adapted(config, lora)
    ids = tokens(2, 24)
    expected = logits(model, ids)
    _, adapter = save_both(tmp_path, model, lora)
    with torch.no_grad():  # token by token: latent attention is then in its absorbed form, which reads kv_b_proj itself
        cache: Cache = model.new_cache(torch.zeros(2, dtype=torch.long), 24)
        steps = [model.logits(model(ids[:, t : t + 1], cache)) for t in range(24)]
    torch.testing.assert_close(torch.cat(steps, 1), expected, rtol=1e-4, atol=1e-4)
    plain_names = set(fresh(config).state_dict())
    merge(model)
    assert set(model.state_dict()) == plain_names and all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(logits(model, ids), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(open_model(adapter).eval(), ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["qwen2", "v3"])
def test_gradients_reach_the_adapters_alone(name: str) -> None:
    config = CONFIGS[name]
    model = adapted(config, LoraConfig(2, targets=targets(config))).train()
    logits_BTV = model.logits(model(tokens(2, 30)))
    logits_BTV.square().mean().backward()
    for parameter_name, parameter in model.named_parameters():
        moves = parameter.grad is not None and float(parameter.grad.abs().max()) > 0
        assert moves == (".lora_" in parameter_name), parameter_name


def test_new_adapters_leave_the_model_as_it_is_and_dropout_is_for_training() -> None:
    config = CONFIGS["qwen2"]
    plain, ids = fresh(config), tokens(1, 20)
    model = fresh(config)
    attach(model, LoraConfig(4), 0)
    assert torch.equal(logits(model, ids), logits(plain, ids))
    assert {n.rsplit(".", 1)[1] for n, p in model.named_parameters() if p.requires_grad} == set(ALL)
    wet = adapted(config, LoraConfig(4, dropout=0.5))
    assert torch.equal(logits(wet, ids), logits(adapted(config, LoraConfig(4)), ids))
    wet.train()
    first, second = (wet.logits(wet(ids)) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(logits(wet, ids), logits(wet.eval(), ids)), "sampling is by the whole adapter"


# PEFT


def peft_model(base: Path, lora: Any = None, adapter: Path | None = None) -> Any:
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = reference(base)
        return peft.PeftModel.from_pretrained(model, adapter) if adapter else peft.get_peft_model(model, lora)


@pytest.mark.parametrize("name", ["qwen2", "qwen3-biased", "llama3", "v2-lite", "v3"])
def test_peft_opens_what_hadal_saves(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    lora = LoraConfig(3, 7.0, targets=LoraConfig(1).targets_of(config))
    lora = replace(lora, targets=[t for t in lora.targets if t in targets(config)])
    model = adapted(config, lora)
    base, adapter = save_both(tmp_path, model, lora)
    theirs = peft_model(base, adapter=adapter)
    ids = tokens(2, 40)
    with torch.no_grad():
        assert float((theirs(ids).logits - logits(model, ids)).abs().max()) < 2e-4


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", ["qwen2", "llama3", "v3"])
def test_hadal_opens_what_peft_saves(name: str, rslora: bool, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = CONFIGS[name]
    base, ids = tmp_path / "base", tokens(2, 40)
    save_model(base, config, fresh(config).state_dict())
    chosen = ["q_b_proj", "kv_b_proj", "o_proj"] if name == "v3" else ["q_proj", "v_proj", "up_proj"]
    theirs = peft_model(
        base, peft.LoraConfig(r=4, lora_alpha=6, use_rslora=rslora, target_modules=chosen, task_type="CAUSAL_LM")
    )
    generator = torch.Generator().manual_seed(3)
    for parameter_name, parameter in theirs.named_parameters():
        if "lora_B" in parameter_name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    theirs.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = theirs.eval()(ids).logits
    model = open_model(tmp_path / "adapter").eval()
    assert float((logits(model, ids) - expected).abs().max()) < 2e-4


# Hostile and mistaken folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = CONFIGS["qwen2"]
    lora = LoraConfig(2)
    return save_both(tmp_path, adapted(config, lora), lora)[1]


def change(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"use_dora": True}, "use_dora True"),
        ({"bias": "all"}, "bias 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern"),
        ({"something_new": 1}, "something_new 1"),
        ({"init_lora_weights": "pissa"}, "changes the base model"),
        ({"r": 0}, "r 0"),
        ({"lora_alpha": math.nan}, "lora_alpha nan"),
        ({"base_model_name_or_path": ["x"]}, "does not name its base"),
    ],
)
def test_a_config_that_hadal_would_not_honour_is_refused(folder: Path, values: dict[str, Any], said: str) -> None:
    change(folder, **values)
    with pytest.raises(UserError, match=said) as error:
        open_model(folder)
    assert "\n" not in str(error.value)


def spoil(folder: Path, kind: str) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    match kind:
        case "name":
            tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.zeros(2, 2)
        case "module":
            tensors[Q.replace("layers.0", "layers.9")] = tensors[Q].clone()
        case "half":
            del tensors[Q]
        case "width":
            tensors[Q] = torch.zeros(2, 47)
        case "rank":
            tensors[Q] = torch.zeros(0, 48)
        case "scalar":
            tensors[Q] = torch.tensor(1.0)
        case "nan":
            tensors[Q][1, 3] = math.nan
        case "empty":
            tensors = {}
        case "cut":
            path.write_bytes(path.read_bytes()[:-5])
            return
        case "pickle":
            path.rename(folder / "adapter_model.bin")
            return
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("name", "is not a linear layer's adapter"),
        ("module", "layers.9.self_attn.q_proj, which the model does not have"),
        ("half", "lacks the tensor .*layers.0.self_attn.q_proj.lora_A"),
        ("width", "q_proj.lora_A.weight is .2, 47. where"),
        ("rank", "must have a rank"),
        ("scalar", "must have a rank"),
        ("nan", "q_proj.lora_A.weight holds values that are not finite"),
        ("empty", "holds no adapters"),
        ("cut", "cannot be read"),
        ("pickle", "adapter_model.bin is a pickle"),
    ],
)
def test_weights_that_do_not_fit_give_one_line(folder: Path, kind: str, said: str) -> None:
    spoil(folder, kind)
    with pytest.raises(UserError, match=said) as error:
        open_model(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_an_adapter_of_another_model_gives_one_line(folder: Path, tmp_path: Path) -> None:
    other = fresh(replace(CONFIGS["llama3"], hidden_size=40, head_dim=4))
    with pytest.raises(UserError, match="where the config wants"):
        load_adapter(other, folder)
    save_model(tmp_path / "v3", CONFIGS["v3"], fresh(CONFIGS["v3"]).state_dict())
    with pytest.raises(UserError, match="Is it an adapter of another model"):
        load_adapter(load_model(tmp_path / "v3"), folder)


def test_unknown_targets_and_impossible_settings_give_one_line() -> None:
    with pytest.raises(UserError, match="no linear layer 'q_prj' to adapt. Did you mean q_proj"):
        attach(fresh(CONFIGS["qwen2"]), LoraConfig(2, targets=["q_prj"]), 0)
    with pytest.raises(UserError, match="Adapters on experts have no dropout"):
        attach(fresh(CONFIGS["v3"]), LoraConfig(2, dropout=0.1, targets=["down_proj"]), 0)
    with pytest.raises(UserError, match="dropout"):
        LoraConfig(2, dropout=1.0)
