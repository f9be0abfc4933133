"""A run of a few seconds that goes through every stage, for tests of what surrounds the training. Not a test itself.

    python tests/small_run.py FOLDER KIND MOMENT ... -- ARGUMENTS OF hadal ...

runs the command again and again, each time in a fork that meets a fault of that KIND at its MOMENT: at the
so-manyeth change of a file in FOLDER (0: never), or at the first step of the stage of that name. Kinds are `kill`
(SIGKILL), `interrupt` (Ctrl-C) and `full` (a full disk). It prints one JSON line for each run: exit status, what
it printed, and how many changes it came to. A run that ends well is moved to FOLDER-1, FOLDER-2, ..., so that
the next one begins anew.
"""

import errno
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

RECIPE = """
tasks = ["letters", "coin.py"]
threads = 1
dtype = "float32"
[model]
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 64
moe_intermediate_size = 32
n_routed_experts = 4
kv_lora_rank = 16
[corpus]
tokens = 384
pool = 16
[pretrain]
steps = 83
extra_steps = 10
extra_rounds = 1
warmup = 5
check_problems = 16
margin = -1.0
checkpoint_every = 10
[pretrain.optimizer]
lr = 0.004
muon_lr = 0.02
[grpo]
updates = 7
prompts = 4
samples = 8
max_tokens = 12
held_out_every = 3
held_out_problems = 6
checkpoint_every = 2
rollouts_every = 3
[evaluate]
problems = 8
mode_problems = 4
level_problems = 4
levels_past_gold = 1
pass_problems = 2
pass_samples = 4
max_tokens = 12
"""

COIN = '''
"""Heads or tails, told by the last word: a guess is right half of the time, so RL has something to weigh."""
from hadal.tasks import Problem, Rng

about = "say which side is up"
difficulties = range(1, 4)
default_difficulty = 1

def generate(rng: Rng, difficulty: int) -> Problem:
    sides = [rng.choice(["heads", "tails"]) for _ in range(difficulty + 4)]
    return Problem("Which is last in " + " ".join(sides) + "?", sides[-1])
'''


def write_recipe(folder: Path) -> Path:
    """The recipe and its task file, in `folder`."""
    (folder / "coin.py").write_text(COIN)
    (folder / "small.toml").write_text(RECIPE)
    return folder / "small.toml"


def as_settings(recipe: Path) -> list[str]:
    """`--set` for every key of the recipe, so that quickstart runs just that."""
    from hadal.recipe.config import load_recipe_data, read_recipe

    data = read_recipe(load_recipe_data(recipe)).to_dict()
    above = ("kind", "from", "arch", "model", "corpus", "tasks")
    for stage in data.pop("stage").values():
        data[stage["kind"]] = {key: value for key, value in stage.items() if key not in above}
    data["tasks"] = ["letters", str(recipe.parent / "coin.py")]
    return [word for key, value in _flat(data) for word in ("--set", f"{key}={json.dumps(value)}")]


def _flat(table: dict, where: str = "") -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{where}{key}.")
        else:
            yield where + key, value


def outcome(run: Path) -> dict[str, bytes]:
    """What must be the same to the last bit, however often a run was stopped."""
    names = ["model.safetensors", "metrics.jsonl", "evaluation.json", "tokenizer.json"]
    files = [run / name for name in names] + sorted((run / "rollouts").iterdir())
    files += sorted((run / "stages" / "grpo" / "best").iterdir())
    listing = "\n".join(sorted(str(path.relative_to(run)) for path in run.rglob("*")))
    return {"the files": listing.encode()} | {str(file.relative_to(run)): file.read_bytes() for file in files}


def changes(event: str, arguments: tuple) -> str | None:
    """The path that an audited event is about to change; None for any other event."""
    if event == "open":
        path, mode, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR) if isinstance(flags, int) else set(mode or "r") & set("wa+x")
        return str(path) if writes else None
    if event == "os.mkdir" and os.path.isdir(arguments[0]):
        return None  # it is there already
    return str(arguments[0]) if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir") else None


class StageWatch:
    """A view that stops the process as a stage takes its first step."""

    def __init__(self, view: object, stage: str, number: int) -> None:
        self.view, self.stage_name, self.number = view, stage, number

    def __getattr__(self, name: str) -> object:
        return getattr(self.view, name)

    def step(self, name: str, step: int, values: dict) -> None:
        if name == self.stage_name:
            os.kill(os.getpid(), self.number)
        self.view.step(name, step, values)


def run_with_fault(folder: str, kind: str, moment: str, arguments: list[str]) -> dict[str, object]:
    """One run of the command in a fork."""
    log = os.memfd_create("log")
    count = os.memfd_create("count")
    stop = signal.SIGKILL if kind == "kill" else signal.SIGINT
    child = os.fork()
    if child == 0:
        os.dup2(log, 1)
        os.dup2(log, 2)
        seen = 0

        def hook(event: str, details: tuple) -> None:
            nonlocal seen
            path = changes(event, details)
            if path is None or not path.startswith(folder):
                return
            seen += 1
            os.pwrite(count, str(seen).encode(), 0)
            if str(seen) == moment:
                if kind == "full":
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
                os.kill(os.getpid(), stop)

        if not moment.isdigit():
            make_view = view.make_view
            view.make_view = lambda **settings: StageWatch(make_view(**settings), moment, stop)
        sys.addaudithook(hook)
        try:
            status = main(arguments)
        except BaseException:
            import traceback

            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    _, status = os.waitpid(child, 0)
    text = os.pread(log, 1 << 20, 0).decode()
    changed = int(os.pread(count, 20, 0) or b"0")
    return {"status": os.waitstatus_to_exitcode(status), "text": text, "changes": changed}


if __name__ == "__main__":
    import torch

    import hadal.recipe.runner  # noqa: F401  imported once, before the forks
    from hadal.cli import main
    from hadal.terminal import view

    torch.set_num_threads(1)
    split = sys.argv.index("--")
    folder, kind, *moments = sys.argv[1:split]
    finished = 0
    for moment in moments:
        result = run_with_fault(folder, kind, moment, sys.argv[split + 1 :])
        print(json.dumps(result), flush=True)
        if result["status"] == 0:
            finished += 1
            os.rename(folder, f"{folder}-{finished}")
