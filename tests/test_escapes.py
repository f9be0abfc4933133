"""Every program of `escapes.py` is contained, in each way in which this machine can hold it, as root and as a user."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from escapes import ATTEMPTS, run_suite

import hadal
from hadal.sandbox import layers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")
OTHER_WAYS = ["landlock,seccomp", "namespaces,seccomp", "namespaces,seccomp,uid", "bubblewrap,seccomp",
              "bubblewrap,landlock,seccomp"]  # fmt: skip


def test_there_are_attempts_of_every_kind() -> None:
    assert len({attempt.name for attempt in ATTEMPTS}) == len(ATTEMPTS) >= 25


@pytest.mark.parametrize("way", ["all", *(pytest.param(way, marks=pytest.mark.long) for way in OTHER_WAYS)])
def test_every_escape_is_contained_and_nothing_is_left(way: str, tmp_path: Path) -> None:
    held = layers.chosen() if way == "all" else tuple(way.split(","))
    if not layers.isolates(held) or any(layers.available()[layer] is not None for layer in held):
        pytest.skip(f"not to be had here: {layers.available()}")
    tmp_path.chmod(0o711)
    faults, results = run_suite(held, tmp_path)
    assert faults == []
    assert {result.layers for result in results.values()} == {held}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user; the tests above are this one's")
@pytest.mark.parametrize("held", ["", *(pytest.param(way, marks=pytest.mark.long) for way in OTHER_WAYS[:2])])
def test_the_same_holds_for_an_ordinary_user(held: str) -> None:
    """Run by an interpreter and from a folder that the user can read; this one's may be root's alone."""
    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    reachable = [
        python
        for python in (layers.python(), shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin"))
        if python and _runs(python, nobody)
    ]
    if not reachable:
        pytest.skip("no Python of the right version that an ordinary user can run")
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/hadal-test-XXXXXX"], text=True).strip())
    try:
        package = Path(hadal.__path__[0])
        for part in ("__init__.py", "errors.py", "machine", "sandbox"):
            copy = shutil.copytree if (package / part).is_dir() else shutil.copy
            (folder / "hadal").mkdir(exist_ok=True)
            copy(package / part, folder / "hadal" / part)
        shutil.copy(Path(__file__).parent / "escapes.py", folder)
        subprocess.run(["chmod", "-R", "a+rX", str(folder)], check=True)
        done = subprocess.run(
            [reachable[0], "escapes.py", *([held] if held else [])], cwd=folder, capture_output=True, text=True,
            timeout=300, env={"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}, **nobody,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "as uid 65534" in done.stdout and " 0 got out" in done.stdout
    finally:
        shutil.rmtree(folder)


def _runs(python: str, user: dict[str, object]) -> bool:
    try:
        program = "import sys, ctypes; sys.exit(sys.version_info < (3, 11))"
        done = subprocess.run([python, "-c", program], cwd="/", **user)
    except OSError:
        return False
    return done.returncode == 0
