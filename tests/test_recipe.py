"""Recipes: what is in them is what runs, and what does not fit is named before anything is touched."""

import json
import tomllib
from pathlib import Path

import pytest
from small_run import write_recipe

from hadal.cli import main
from hadal.recipe.config import load_recipe_data, read_recipe, to_toml


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["quickstart", "tiny"])
def test_shipped_recipes_are_read_and_written_alike(name: str) -> None:
    recipe = read_recipe(load_recipe_data(name))
    assert read_recipe(tomllib.loads(to_toml(recipe.to_dict()))) == recipe


def test_any_text_survives_toml() -> None:
    data = {"tasks": ['a "b" \\ \n', "日本.py"], "x": {"y": 1e-10, "z": {"flag": True, "n": -3}}}
    assert tomllib.loads(to_toml(data)) == data


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("pretrain.stepz=3", ["pretrain.stepz", "Did you mean steps?"]),
        ("grpoo.updates=3", ["grpoo", "Did you mean grpo?"]),
        ("grpo.optimizer.lrr=3", ["grpo.optimizer.lrr", "Did you mean lr?"]),
        ("pretrain.steps=ten", ["pretrain.steps is 'ten'", "whole number"]),
        ("pretrain.steps=1.5", ["pretrain.steps is 1.5", "whole number"]),
        ("pretrain.steps=true", ["pretrain.steps is True", "whole number"]),
        ("pretrain.steps=-1", ["pretrain.steps is -1", "at least 1"]),
        ("pretrain.extra_steps=0", ["pretrain.extra_steps is 0", "at least 1"]),
        ("evaluate.problems=0", ["evaluate.problems is 0", "at least 1"]),
        ("corpus.tokens=0", ["corpus.tokens is 0", "at least 1"]),
        ("model.num_attention_heads=0", ["model.num_attention_heads is 0", "at least 1"]),
        ("model.num_attention_heads=5", ["model.hidden_size", "5 heads"]),
        ("pretrain.margin=nan", ["pretrain.margin is nan", "finite"]),
        ("grpo.decay_share=0", ["grpo.decay_share is 0.0", "above 0"]),
        ("pretrain=3", ["pretrain is 3", "table"]),
        ("seed.x=3", ["seed"]),
        ('tasks="sums"', ["tasks is 'sums'", "list"]),
        ("tasks=[]", ["no tasks"]),
        ('tasks=["summs"]', ["'summs'", "Did you mean sums?"]),
        ('arch="denze"', ["'denze'", "Did you mean dense?"]),
        ('dtype="float16"', ["'float16'", "bfloat16"]),
        ("steps", ["'steps'", "KEY=VALUE"]),
        ("=3", ["'=3'", "KEY=VALUE"]),
    ],
)
def test_a_wrong_setting_is_one_line(setting: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(Path("."))
    for command in (["train", str(recipe), "--trust"], ["quickstart", "--minutes", "1"]):
        assert main([*command, "--out", "run", "--set", setting]) == 2
        out, err = capsys.readouterr()
        assert err.startswith("hadal: ") and err.count("\n") == 1
        assert [word for word in words if word not in err] == [], err
        assert not Path("run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tasks = [", ["small.toml", "not valid TOML"]),
        ("[pretrain]\nsteps = 3", ["incomplete", "tasks"]),
        ('tasks = ["./nothing.py"]', ["nothing.py"]),
    ],
)
def test_a_broken_recipe_is_one_line(text: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(Path("."))
    recipe.write_text(text)
    assert main(["train", str(recipe), "--trust", "--out", "run"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("hadal: ") and err.count("\n") == 1
    assert [word for word in words if word not in err] == [], err
    assert not Path("run").exists()


@pytest.mark.parametrize("name", ["nowhere.toml", "recipe.txt", "."])
def test_no_recipe(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", name]) == 2
    err = capsys.readouterr().err
    assert err.startswith("hadal: ") and err.count("\n") == 1 and name in err


def test_a_recipe_runs_no_python_file_unless_trusted(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(Path("."))
    Path("coin.py").write_text("open('ran', 'w')\n" + Path("coin.py").read_text())
    assert main(["train", str(recipe), "--out", "run"]) == 2
    assert "coin.py" in (err := capsys.readouterr().err) and "--trust" in err and err.count("\n") == 1
    assert not Path("ran").exists() and not Path("run").exists()


def test_a_dry_run_prints_what_a_run_would_freeze_and_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """From another folder, since a recipe's files lie beside it; with threads and dtype left open."""
    Path("beside").mkdir()
    recipe = write_recipe(Path("beside"))
    recipe.write_text(recipe.read_text().replace("threads = 1\n", "").replace('dtype = "float32"\n', ""))
    before = sorted(Path(".").rglob("*"))
    assert main(["train", str(recipe), "--trust", "--dry-run", "--set", "grpo.updates=3"]) == 0
    out, err = capsys.readouterr()
    assert "Traceback" not in err and "Computing in" in err
    assert "minutes, $" in out and "# grpo: " in out
    assert sorted(path for path in Path(".").rglob("*") if "__pycache__" not in str(path)) == before
    resolved = read_recipe(tomllib.loads(out))
    own = read_recipe(load_recipe_data(recipe))
    assert resolved.grpo.updates == 3 and resolved.pretrain.steps == own.pretrain.steps
    assert resolved.threads >= 1 and resolved.dtype in ("float32", "bfloat16")
    assert resolved.tasks == ["letters", str(Path("beside/coin.py").resolve())]
    Path("resolved.toml").write_text(out)
    assert main(["train", "resolved.toml", "--trust", "--seed", "3", "--set", "grpo.updates=1"]) == 0
    frozen = read_recipe(json.loads(Path("runs/resolved-seed3/run.json").read_text())["config"])
    assert frozen == read_recipe(load_recipe_data("resolved.toml", ["grpo.updates=1", "seed=3"]))


def test_a_table_changes_single_values_of_a_stages_own_defaults() -> None:
    tables = {"grpo": {"optimizer": {"lr": 0.25}}, "pretrain": {"optimizer": {"clip": 2.0}}}
    recipe = read_recipe({"tasks": ["sums"], **tables})
    assert (recipe.grpo.optimizer.lr, recipe.grpo.optimizer.muon_lr) == (0.25, 0.0)
    assert recipe.pretrain.optimizer.clip == 2.0 and recipe.pretrain.optimizer.muon_lr > 0
