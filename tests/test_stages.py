"""Stages: a kind is a file, found by its name; what runs from before have frozen is read as it was meant."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_chain import write_chain

from hadal import stages
from hadal.cli import main
from hadal.errors import UserError
from hadal.recipe.config import load_recipe_data, read_frozen, read_recipe
from hadal.recipe.runner import read_file, tokenizer_of
from hadal.stages import find, grpo, names
from hadal.stages.common.run import Run
from hadal.tasks import Rng, load_tasks
from hadal.terminal.view import make_view


def test_every_kind_is_whole() -> None:
    assert {"pretrain", "sft", "grpo", "reject", "distill", "evaluate"} <= set(names())
    for name in names():
        kind = find(name)
        assert kind.LEAVES in ("model", "data", "figures"), name
        assert callable(kind.check) and callable(kind.needs) and callable(kind.run_stage), name
        assert (kind.Config().grows(64) is not None) == (name == "pretrain")
    with pytest.raises(UserError, match="There is no kind of stage 'pretrian'"):
        find("pretrian")


# One file more

SOUP = """
tasks = ["letters"]
threads = 1
dtype = "float32"
model = { hidden_size = 32, num_hidden_layers = 1, num_attention_heads = 2, intermediate_size = 64 }
corpus.tokens = 384
pretrain = { steps = 2, extra_rounds = 0, check_problems = 2, max_tokens = 8 }
[stage]
first = { kind = "pretrain" }
second = { kind = "pretrain" }
third = { kind = "pretrain" }
soup = { kind = "average", from = "first", models = ["second", "third"] }
"""


def average(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that docs/extending.md shows, beside the others."""
    text = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "Model soup" in b]
    (folder / "average.py").write_text(block)
    monkeypatch.setattr(stages, "__path__", [*stages.__path__, str(folder)])


@pytest.mark.usefixtures("one_thread")
def test_one_more_file_is_one_more_kind_of_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kinds").mkdir()
    recipe, out = tmp_path / "soup.toml", tmp_path / "run"
    recipe.write_text(SOUP)
    assert main(["train", str(recipe), "--out", str(out)]) == 2
    assert "stage.soup.kind is 'average'" in capsys.readouterr().err
    average(tmp_path / "kinds", monkeypatch)
    assert main(["train", str(recipe), "--dry-run"]) == 0
    assert "# soup: 1 s" in capsys.readouterr().out
    assert main(["train", str(recipe), "--out", str(out)]) == 0
    parts = [load_file(out / "stages" / name / "model.safetensors") for name in ("first", "second", "third")]
    mixed = load_file(out / "model.safetensors")
    assert mixed.keys() == parts[0].keys()
    for name, weights in mixed.items():
        torch.testing.assert_close(weights, sum(part[name] for part in parts) / 3)
    assert not all(torch.equal(mixed[name], parts[0][name]) for name in mixed)
    for setting, told in (('models=["fourth"]', "stage.soup.models is 'fourth', which is not a stage before it"),
                          ("modles=[]", "Did you mean models?")):  # fmt: skip
        assert main(["train", str(recipe), "--out", str(tmp_path / "other"), "--set", f"stage.soup.{setting}"]) == 2
        assert told in capsys.readouterr().err


# Recipes and runs from before the quickstart was a recipe of four stages

OLD_TINY = """
tasks = ["letters", "clock"]
[model]
hidden_size = 64
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
intermediate_size = 128
moe_intermediate_size = 64
n_routed_experts = 4
kv_lora_rank = 32
[corpus]
tokens = 768
[pretrain]
steps = 360
extra_rounds = 0
checkpoint_every = 40
margin = -1.0
[grpo]
algorithm = "grpo"
updates = 12
prompts = 8
samples = 8
max_tokens = 64
held_out_every = 6
held_out_problems = 20
checkpoint_every = 3
rollouts_every = 6
[evaluate]
problems = 60
mode_problems = 30
level_problems = 20
levels_past_gold = 2
pass_problems = 8
pass_samples = 8
max_tokens = 96
"""


def test_a_recipe_that_names_no_stages_has_the_quickstarts() -> None:
    recipe = read_recipe(tomllib.loads(OLD_TINY))
    assert [(s.name, s.kind, s.source) for s in recipe.stages] == [
        ("pretrain", "pretrain", ""), ("evaluate-base", "evaluate", "pretrain"), ("grpo", "grpo", "pretrain"),
        ("evaluate-rl", "evaluate", "grpo"),
    ]  # fmt: skip
    assert recipe == read_recipe(load_recipe_data("tiny"))
    assert recipe.final == "grpo" and recipe.stage("evaluate-rl").config.samples == 1
    assert recipe.stage("pretrain").config.max_tokens == 64  # as practice has it


def test_so_has_the_shipped_quickstart() -> None:
    data = load_recipe_data("quickstart")
    assert len(data["stage"]) == 4
    del data["stage"], data["evaluate"]
    assert read_recipe(data) == read_recipe(load_recipe_data("quickstart"))


# Seeds


def run_of(folder: Path, **settings: Any) -> Run:
    recipe = read_file(write_chain(folder), [f"{key}={value}" for key, value in settings.items()], trust=True)
    tasks = load_tasks(recipe.tasks)
    return Run(folder / "run", recipe, tasks, tokenizer_of(recipe, tasks), make_view(json=True))


def begun(run: Run, name: str) -> int:
    run.begin(run.recipe.stage(name))
    return run.model_seed


def test_seeds_go_by_the_names_of_stages(tmp_path: Path) -> None:
    run = run_of(tmp_path, seed=5, device="cpu")
    assert begun(run, "base") == run.seed_of("base") != begun(run, "student") == run.seed_of("student")
    assert grpo.seed_of(run, "grpo") == run.seed_of("grpo") and grpo.seed_of(run, "r1") == run.seed_of("r1")


def test_a_run_frozen_before_that_keeps_its_draws(tmp_path: Path) -> None:
    """It says nothing of its seeds: models and corpora had the recipe's, RL another rule than the rest."""
    frozen = json.loads(json.dumps(run_of(tmp_path, seed=5, device="cpu").recipe.to_dict()))
    del frozen["seeds"]
    frozen["stage"]["dev1"] |= {"dtype": "auto", "device": "auto", "seed": 0, "threads": 0}  # as stages once had
    recipe = read_frozen(frozen)
    assert recipe.seeds == "run" and read_recipe(frozen).seeds == "stage"
    assert read_frozen(recipe.to_dict()) == recipe
    tasks = load_tasks(recipe.tasks)
    run = Run(tmp_path / "run", recipe, tasks, tokenizer_of(recipe, tasks), make_view(json=True))
    assert begun(run, "base") == begun(run, "student") == 5
    assert grpo.seed_of(run, "grpo") == 5 and grpo.seed_of(run, "r1") == Rng("r1", 5).bits()
    assert run.seed_of("dev1") == Rng("dev1", 5).bits() >> 1
