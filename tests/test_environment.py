"""What is set before torch is imported: by every command, for every process, and never against the user."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hadal.cli import build_parser
from hadal.machine import environment, spinning

NAMES = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY", "MKL_CBWR")

# Ends at the first import of torch, with what the environment says at that moment.
WATCHED = """
import os, runpy, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("TORCH", *(os.environ.get(n, "-") for n in {names!r}), file=sys.stderr, flush=True)
            os._exit(77)
sys.meta_path.insert(0, Watch())
sys.argv[0] = "hadal"
{start}
"""
STARTS = {
    "python -m hadal": "runpy.run_module('hadal', run_name='__main__')",
    "hadal": "from hadal.cli import main; sys.exit(main())",
}
COMMANDS = {
    "quickstart": ["--minutes", "1", "--no-chat", "--out", "run"],
    "train": ["r1", "--out", "run"],
    "rollouts": ["show", "run"],
    "sft": ["model", "data.jsonl", "--out", "run"],
    "ablate": ["r1", "--set", "pretrain.steps=1", "--seeds", "1", "--out", "run"],
    "chat": ["model"],
    "ask": ["model", "1+1="],
    "serve": ["model"],
    "tasks": ["list"],
    "eval": ["model", "--tasks", "sums"],
    "model": ["info", "model"],
    "verify": ["model"],
    "doctor": [],
}


def clean(**more: str) -> dict[str, str]:
    source = str(Path(environment.__file__).parents[2])
    return {name: value for name, value in os.environ.items() if name not in NAMES} | {"PYTHONPATH": source} | more


def at_torch(command: str, start: str, folder: Path, **more: str) -> list[str]:
    """The values of `NAMES` when the command first imports torch; nothing where it ends without."""
    program = WATCHED.format(names=NAMES, start=STARTS[start])
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, command, *COMMANDS[command]],
        capture_output=True, text=True, env=clean(**more), cwd=folder, stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    told = [line.split()[1:] for line in done.stderr.splitlines() if line.startswith("TORCH")]
    assert len(told) == (done.returncode == 77), done.stderr
    return told[0] if told else []


def expected() -> list[str]:
    spins = "-" if spinning.can_watch() else str(environment.SPINS)
    return [spins, str(environment.BLOCKED), "-", "AUTO,STRICT" if environment.is_intel() else "-"]


def test_every_command_sets_it_before_torch_is_imported(tmp_path: Path) -> None:
    commands = build_parser()[1]
    assert set(commands) - set(COMMANDS) == {"test"}, "pytest's processes have it from conftest.py"
    seen = {command: at_torch(command, "python -m hadal", tmp_path) for command in COMMANDS}
    reached = [command for command, values in seen.items() if values]
    assert {command: seen[command] for command in reached} == {command: expected() for command in reached}
    assert {"quickstart", "train", "chat", "ask", "serve", "eval", "doctor"} <= set(reached)


def test_the_installed_script_sets_it_as_well(tmp_path: Path) -> None:
    assert at_torch("doctor", "hadal", tmp_path) == expected()


@pytest.mark.parametrize(
    ("name", "value"),
    [("GOMP_SPINCOUNT", "77"), ("OMP_WAIT_POLICY", "active"), ("KMP_BLOCKTIME", "5"), ("MKL_CBWR", "COMPATIBLE")],
)
def test_what_a_user_has_set_stays(name: str, value: str, tmp_path: Path) -> None:
    seen = dict(zip(NAMES, at_torch("doctor", "python -m hadal", tmp_path, **{name: value}), strict=True))
    assert seen[name] == value
    if name == "OMP_WAIT_POLICY":
        assert seen["GOMP_SPINCOUNT"] == seen["KMP_BLOCKTIME"] == "-", "it is a word on waiting to every OpenMP"


def test_these_tests_run_with_it() -> None:
    assert not environment.settings(), "tests/conftest.py comes before torch"


@pytest.mark.parametrize(("vendor", "mode"), [("GenuineIntel", "AUTO,STRICT"), ("AuthenticAMD", None), ("", None)])
def test_mkl_is_made_reproducible_on_intels_cpus_alone(
    vendor: str, mode: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: something\n")
    monkeypatch.setattr(environment, "CPUINFO", file)
    monkeypatch.delenv("MKL_CBWR", raising=False)
    assert environment.settings().get("MKL_CBWR") == mode
    file.unlink()
    assert "MKL_CBWR" not in environment.settings(), "a system without the file"
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    assert "MKL_CBWR" not in environment.settings()
