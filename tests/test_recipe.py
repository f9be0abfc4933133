"""Recipes: what is in them is what runs, and what does not fit is named before anything is touched."""

import json
import os
import tomllib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from small_run import COIN, write_recipe

from hadal.cli import main
from hadal.errors import UserError
from hadal.ranges import range_of
from hadal.recipe.config import load_recipe_data, read_recipe, to_toml
from hadal.recipe.runner import read_file
from hadal.rewards import read_rewards
from hadal.stages import find
from hadal.stages import names as kinds
from hadal.train import algorithms


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
        ("grpo.optimizer.lr=-1", ["grpo.optimizer.lr is -1.0", "at least 0"]),
        ("grpo.optimizer.lr=1" + 400 * "0", ["grpo.optimizer.lr is 1000", "finite"]),
        ("pretrain.optimizer.beta1=1", ["pretrain.optimizer.beta1 is 1.0", "below 1"]),
        ("grpo.updates=100000000000", ["grpo.updates is 100000000000", "at most 10,000,000"]),
        ("grpo.samples=1", ["grpo.samples is 1", "2 or more"]),
        ("grpo.options.clip_low=-1", ["grpo.options.clip_low is -1.0", "at least 0"]),
        ("grpo.rewards.format=-1", ["format is -1.0"]),
        ("grpo.prompts=90000", ["grpo.prompts is 90000", "100,000 responses"]),
        ("seed=" + 5000 * "9", ["seed is '9999", "whole number"]),
        ("seed=0x" + 5000 * "f", ["seed is a int of absurd size", "at most"]),
        ("seed=99999999999999999999", ["seed is 9999999999", "at most"]),
        ("corpus.tokens=" + 3000 * "[" + 3000 * "]", ["corpus.tokens", "nested too deeply"]),
        ("corpus.tokens=" + 100 * "[" + 100 * "]", ["corpus.tokens is [[[[", "whole number"]),
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
        assert err.startswith("hadal: ") and err.count("\n") == 1 and len(err) < 600
        assert [word for word in words if word not in err] == [], err
        assert not Path("run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tasks = [", ["small.toml", "not valid TOML"]),
        ("[pretrain]\nsteps = 3", ["incomplete", "tasks"]),
        ('tasks = ["./nothing.py"]', ["nothing.py"]),
        ('tasks = ["sums"]\nstage = 3', ["stage is 3", "tables"]),
        ('tasks = ["sums"]\n[stage]', ["no stages"]),
        ('tasks = ["sums"]\n[stage.a]\nkind = []', ["stage.a.kind is []", "pretrain"]),
        ('tasks = ["sums"]\n[stage.a]\nkind = {a = 1}', ["stage.a.kind is {'a': 1}", "pretrain"]),
        ('tasks = ["sums"]\n[stage.a]\nkind = true', ["stage.a.kind is True", "pretrain"]),
        ('tasks = ["sums"]\n[stage.a]\nkind = "grpo"\nfrom = []', ["stage.a.from is []"]),
        ('tasks = ["sums"]\n[stage.a]\nkind = "pretrain"\nsteps = -1', ["stage.a.steps is -1", "at least 1"]),
        ('tasks = ["sums"]\n[grpo]\nsamples = 1\n[stage]\na = {kind = "pretrain"}\nb = {kind = "grpo", from = "a"}',
         ["stage.b.samples is 1"]),
        ('tasks = ["sums"]\n[stage]\na = {kind = "pretrain"}\nb = {kind = "sft", from = "a", data = ["no.jsonl"]}',
         ["stage.b.data", "no.jsonl"]),
        ("tasks = [" + 3000 * "[", ["small.toml", "nested too deeply"]),
        ("a = " + 3000 * "{a = ", ["small.toml", "nested too deeply"]),
        ("seed = " + 5000 * "9", ["small.toml", "not valid TOML"]),
        ("seed = \udcff", ["small.toml", "not valid TOML"]),
    ],
)  # fmt: skip
def test_a_broken_recipe_is_one_line(text: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(Path("."))
    recipe.write_bytes(text.encode(errors="surrogateescape"))
    assert main(["train", str(recipe), "--trust", "--out", "run"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("hadal: ") and err.count("\n") == 1 and len(err) < 600
    assert [word for word in words if word not in err] == [], err
    assert not Path("run").exists()


def test_a_model_that_no_memory_holds_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--set", "model.hidden_size=65536", "--set", "model.num_hidden_layers=500"]
    for command in (["train", str(write_recipe(Path("."))), "--trust", "--dry-run"], ["quickstart", "--minutes", "1"]):
        assert main([*command, *sizes]) == 2
        err = capsys.readouterr().err
        assert "pretrain needs about" in err and "are free" in err and err.count("\n") == 1, err


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
    assert resolved.stage("grpo").config.updates == 3
    assert resolved.stage("pretrain").config.steps == own.stage("pretrain").config.steps
    assert resolved.threads >= 1 and resolved.dtype in ("float32", "bfloat16")
    assert resolved.tasks == ["letters", str(Path("beside/coin.py").resolve())]
    Path("resolved.toml").write_text(out)
    assert main(["train", "resolved.toml", "--trust", "--seed", "3", "--set", "grpo.updates=1"]) == 0
    frozen = read_recipe(json.loads(Path("runs/resolved-seed3/run.json").read_text())["config"])
    assert frozen == read_recipe(load_recipe_data("resolved.toml", ["grpo.updates=1", "seed=3"]))


def test_a_table_changes_single_values_of_a_stages_own_defaults() -> None:
    tables = {"grpo": {"optimizer": {"lr": 0.25}}, "pretrain": {"optimizer": {"clip": 2.0}}}
    recipe = read_recipe({"tasks": ["sums"], **tables})
    grpo, pretrain = (recipe.stage(name).config.optimizer for name in ("grpo", "pretrain"))
    assert (grpo.lr, grpo.muon_lr) == (0.25, 0.0)
    assert pretrain.clip == 2.0 and pretrain.muon_lr > 0


def test_a_recipe_that_an_editor_has_marked_as_utf_8_is_read() -> None:
    recipe = write_recipe(Path("."))
    own = load_recipe_data(recipe)
    recipe.write_bytes(b"\xef\xbb\xbf" + recipe.read_bytes())
    assert load_recipe_data(recipe) == own


# Numbers


def numbers(config: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(name, the config that has it, its value) of every number in a config and the tables in it."""
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            yield from numbers(value, f"{where}{f.name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield where + f.name, config, value


CHAIN = {
    "base": {"kind": "pretrain"}, "rl": {"kind": "grpo", "from": "base"}, "data": {"kind": "reject", "from": "rl"},
    "tuned": {"kind": "sft", "from": "base", "data": ["data"]},
    "taught": {"kind": "distill", "from": "base", "data": ["data"], "teacher": "rl", "method": "logits"},
    "seen": {"kind": "evaluate", "from": "rl"},
}  # fmt: skip
BELOW_0 = {"baseline", "margin"}
"""What may be -1: every task is ready; more than the mean is added."""
MAY_BE_0 = BELOW_0 | {
    # nothing of it
    "seed", "threads", "num_nextn_predict_layers", "extra_rounds", "pass_problems", "gold", "plain", "rank", "alpha",
    "dropout", "levels_past_gold", "mode_problems", "level_problems", "checking_share", "foreign_share", "gap_share",
    "warmup_share", "least_language", "most_repetition", "accuracy", "format", "language", "length", "overlong",
    "repetition", "tests", "judge",
    "mtp_weight", "router_bias_rate", "lr", "muon_lr", "beta1", "beta2", "momentum", "weight_decay", "clip", "kl",
    "importance_cap", "clip_low", "clip_high", "temperature",
}  # fmt: skip


def settings_of(kind: str) -> list[tuple[str, Any, Any]]:
    return [(f"{kind}.{name}", config, value) for name, config, value in numbers(find(kind).Config())]


REWARDS = read_rewards({})
ALL = [
    *numbers(read_recipe({"tasks": ["sums"]})), *(entry for kind in kinds() for entry in settings_of(kind)),
    *((f"grpo.options.{n}", c, v) for a in algorithms.names() for n, c, v in numbers(algorithms.read_options(a, {}))),
    *((f"grpo.rewards.{n}", c, v) for part in REWARDS.options.values() for n, c, v in numbers(part)),
    *((f"grpo.rewards.{name}", None, weight) for name, weight in REWARDS.weights.items()),
]  # fmt: skip


def test_every_number_has_a_range() -> None:
    ranged = [(name, config) for name, config, _ in ALL if config is not None]  # rewards' weights have one of their own
    unknown = [name for name, config in ranged if range_of(type(config), name.rpartition(".")[2]) is None]
    assert unknown == []
    assert len(ALL) > 150


@pytest.mark.parametrize("bad", [-1, 0, 10**12, 1e30, float("nan")])
def test_every_number_is_refused_in_one_line_or_meant(bad: float) -> None:
    """Each alone, in a recipe of stages that has every kind and in one that has none."""
    taken = set()
    for name, _, value in ALL:
        *tables, key = name.split(".")
        given = float(bad) if isinstance(value, float) else bad
        for stages in ({}, {"stage": CHAIN}):
            if tables[:1] in (["sft"], ["distill"], ["reject"]) and not stages:
                continue
            data: dict[str, Any] = {"tasks": ["sums", "talk"], **json.loads(json.dumps(stages))}
            table = data
            for part in tables:
                table = table.setdefault(part, {})
            if key in ("gold", "plain", "problems") and tables == ["reject"]:
                table["plain"] = 5  # something is left to learn from
            if key == "keep":
                table["samples"] = 100_000
            if key == "accuracy":
                table["format"] = 1.0
            if tables[-1:] == ["options"] and key in ("clip_low", "clip_high", "baseline"):
                data["grpo"]["algorithm"] = "grpo"
            table[key] = given
            try:
                read_recipe(data)
            except UserError as error:
                assert "\n" not in str(error) and len(str(error)) < 600
                assert error.remedy or "multiple of" in error.cause, error
                continue
            taken.add(key)
    allowed = {-1: BELOW_0, 0: MAY_BE_0 | {"problems"}, 10**12: {"seed"}}.get(bad, set())  # rejection may draw none
    assert taken <= allowed, taken - allowed
    assert taken == allowed or bad not in (-1, 0)


@pytest.mark.parametrize(
    "name", ["epochs=0", "optimizer.lr=-1", "optimizer.lr=nan", "lora.dropout=1", "warmup_share=1"]
)
def test_fine_tuning_has_the_same_ranges(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sft", "nowhere", "data.jsonl", "--out", "out", "--set", name]) == 2
    err = capsys.readouterr().err
    assert name.partition("=")[0] in err and "must be" in err and err.count("\n") == 1


def test_one_sample_of_a_problem_is_enough_where_nothing_is_compared() -> None:
    for grpo in ({"algorithm": "expert_iteration"}, {"algorithm": "grpo", "options": {"baseline": 0.5}}):
        assert read_recipe({"tasks": ["sums"], "grpo": {**grpo, "samples": 1}}).stage("grpo").config.samples == 1


@pytest.mark.parametrize("seed", [5000 * "9", str(2**63), "-1", "1.5", "\n"])
def test_a_seed_that_is_none_is_one_short_line(seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["quickstart"], ["train", "tiny"], ["eval", "x"]):
        assert main([*command, f"--seed={seed}"]) == 2
        err = capsys.readouterr().err
        assert "--seed" in err and err.count("\n") == 1 and len(err) < 200


# Paths


def test_paths_are_beside_the_recipe_that_names_them_and_here_where_they_are_typed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The rule, for all that can be a path: tasks, conversations, data sets, checkpoints."""
    for folder in ("here", "there"):
        Path(folder, "rows").mkdir(parents=True)
        Path(folder, "model").mkdir()
        Path(folder, "coin.py").write_text(COIN)
        Path(folder, "talk.jsonl").write_text("{}")
    recipe = Path("there/mine.toml")
    recipe.write_text(
        'tasks = ["./coin.py", "gsm8k:rows", "sums"]\ncheckpoint = "model"\n[stage.a]\nkind = "sft"\n'
        'from = "checkpoint"\ndata = ["talk.jsonl"]\n[stage.b]\nkind = "grpo"\nfrom = "a"\ntasks = ["coin.py"]\n'
    )
    os.chdir("here")
    there = Path("../there").resolve()
    found = read_file(Path("../there/mine.toml"), [], trust=True)
    assert found.tasks == [str(there / "coin.py"), f"gsm8k:{there / 'rows'}", "sums"]
    assert found.checkpoint == str(there / "model") and found.stages[0].config.data == [str(there / "talk.jsonl")]
    assert found.stages[1].config.tasks == [str(there / "coin.py")]
    here = Path.cwd()
    typed = ['tasks=["./coin.py", "gsm8k:rows"]', "checkpoint=model", 'stage.a.data=["talk.jsonl"]',
             'stage.b.tasks=["./coin.py"]']  # fmt: skip
    found = read_file(Path("../there/mine.toml"), typed, trust=False)  # what is typed is trusted, as --task is
    assert found.tasks == [str(here / "coin.py"), "gsm8k:rows"] and found.checkpoint == "model"
    assert found.stages[0].config.data == ["talk.jsonl"] and found.stages[1].config.tasks == [str(here / "coin.py")]
    with pytest.raises(UserError, match=r"mine.toml names the Python file .*there/coin.py"):
        read_file(Path("../there/mine.toml"), [], trust=False)


def test_a_typed_task_goes_with_a_shipped_recipe() -> None:
    Path("mine.py").write_text(COIN)
    for name in ("./mine.py", "mine.py"):
        assert read_file(Path("tiny"), [f'tasks=["{name}"]'], trust=False).tasks == [str(Path("mine.py").resolve())]


def test_a_hub_id_is_no_path_beside_the_recipe() -> None:
    Path("there").mkdir()
    Path("there/mine.toml").write_text(
        'tasks = ["sums"]\ncheckpoint = "owner/model"\n[stage.a]\nkind = "grpo"\nfrom = "checkpoint"\n'
    )
    assert read_file(Path("there/mine.toml"), [], trust=False).checkpoint == "owner/model"
    assert load_recipe_data("qwen-gsm8k")["checkpoint"] == "Qwen/Qwen2.5-0.5B-Instruct"
