"""The root script `./hadal`, run for real: what it says where something is missing, and how it installs.

The installations here are of a stand-in project with no dependencies, so that they take seconds and
reach no index; the script and the installer are the real ones. One test installs hadal itself (long).
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
UTILITIES = ("sh", "cat", "cksum", "cut", "dirname", "readlink", "uname")

BACKEND = '''
"""A build backend for the tests: an editable wheel of src/, made with the standard library."""
import os, time, zipfile

def _wheel(folder, *_):
    time.sleep(float(os.environ.get("SLOW_BUILD", "0")))
    if os.path.exists("broken"):
        raise SystemExit("the build is broken on purpose")
    info = "hadal-0.dist-info"
    files = {
        "hadal.pth": os.path.abspath("src"),
        f"{info}/METADATA": "Metadata-Version: 2.1\\nName: hadal\\nVersion: 0\\nProvides-Extra: test\\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }
    record = "".join(f"{name},,\\n" for name in files) + f"{info}/RECORD,,\\n"
    with zipfile.ZipFile(os.path.join(folder, "hadal-0-py3-none-any.whl"), "w") as wheel:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(name, text)
    return "hadal-0-py3-none-any.whl"

build_editable = build_wheel = _wheel
'''
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "hadal"
version = "0"
dependencies = []
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A stand-in project, in a folder with a space in its name, whose hadal prints how it was called."""
    root = tmp_path / "the project"
    (root / "src" / "hadal").mkdir(parents=True)
    (root / "scripts").mkdir()
    shutil.copy(ROOT / "hadal", root)
    shutil.copy(ROOT / "scripts" / "install.py", root / "scripts")
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "constraints.txt").write_text("")
    (root / "backend.py").write_text(BACKEND)
    (root / "src" / "hadal" / "__init__.py").write_text("")
    (root / "src" / "hadal" / "__main__.py").write_text(
        "import os, sys\nimport types, hadal\nprint('ran', *sys.argv[1:], 'in', os.getcwd())\n"
    )
    return root


def environment(**changes: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HADAL_PYTHON")}
    return {**plain, "HADAL_PYTHON": sys.executable, **changes}


def call(
    root: Path, *arguments: str, cwd: Path | None = None, **changes: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(root / "hadal"), *arguments], cwd=cwd or root, env=environment(**changes),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def bare_path(folder: Path, **programs: str) -> str:
    """A PATH with the utilities the script needs, the given programs, and no Python."""
    folder.mkdir()
    for name in UTILITIES:
        if not (folder / name).exists():
            (folder / name).symlink_to(shutil.which(name) or pytest.skip(f"no {name} here"))
    for name, text in programs.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("programs", "words"),
    [
        ({}, ["Python 3.11 or newer is needed", "none was found", "apt install", "HADAL_PYTHON"]),
        ({"python3": "echo 3.9.2 old"}, ["Python 3.11 or newer is needed", "python3 is 3.9.2"]),
        (
            {"python3": "echo 3.12.4 novenv"},
            ["python3 3.12.4", "venv", "apt install python3-venv", "python3.12-venv"],
        ),
        ({"uname": "echo MINGW64_NT-10.0"}, ["WSL"]),
        ({"uname": "echo MSYS_NT-10.0"}, ["WSL"]),
        ({"uname": "echo CYGWIN_NT-10.0"}, ["WSL"]),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(
    project: Path, tmp_path: Path, programs: dict[str, str], words: list[str]
) -> None:
    done = call(project, "--help", PATH=bare_path(tmp_path / "bin", **programs), HADAL_PYTHON="")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("hadal: ") and done.stderr.count("\n") == 1
    assert [word for word in words if word not in done.stderr] == []
    assert not (project / ".venv").exists()


def test_a_wrong_hadal_python_is_named(project: Path) -> None:
    done = call(project, "--help", HADAL_PYTHON="/no/such python")
    assert done.returncode == 2
    assert "HADAL_PYTHON is set to /no/such python, which does not run" in done.stderr


def test_the_probe_finds_the_real_version(project: Path, tmp_path: Path) -> None:
    """Pythons that are too old are passed over for one that fits, whatever its name."""
    good = f'exec "{sys.executable}" "$@"'
    path = bare_path(tmp_path / "bin", python3="echo 3.9.2 old", **{"python3.12": good})
    done = call(project, "hello", PATH=path, HADAL_PYTHON="")
    assert done.stdout == f"ran hello in {project}\n", done.stderr


def test_installs_once_and_runs_in_the_callers_folder(project: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (elsewhere / "types.py").write_text("raise SystemExit('a module of the caller')")
    (elsewhere / "link").symlink_to(project / "hadal")

    first = call(project, "quickstart", "--out", "a b", cwd=elsewhere)
    assert first.stdout == f"ran quickstart --out a b in {elsewhere}\n", first.stderr
    assert "making .venv" in first.stderr

    start = time.monotonic()
    second = subprocess.run(
        [str(elsewhere / "link"), "x"], cwd=elsewhere, env=environment(), capture_output=True, text=True
    )
    assert time.monotonic() - start < 1
    assert (second.stdout, second.stderr) == (f"ran x in {elsewhere}\n", "")

    extra = call(project, "test")  # the extra is new: one more step, in the same .venv
    assert "installing" in extra.stderr and "making" not in extra.stderr
    assert call(project, "test").stderr == ""
    assert call(project, "other").stderr == ""

    with (project / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    assert "installing hadal and the tools of its tests" in call(project, "other").stderr
    assert call(project, "test").stderr == ""


def test_a_failed_installation_shows_why_and_is_tried_again(project: Path) -> None:
    (project / "broken").touch()
    failed = call(project, "x")
    assert failed.returncode == 2 and failed.stdout == ""
    assert "the build is broken on purpose" in failed.stderr
    log = project / ".venv" / "hadal-install.log"
    assert str(log) in failed.stderr and "on purpose" in log.read_text()
    assert "Traceback" not in failed.stderr.split("Its last lines")[0]

    (project / "broken").unlink()
    mended = call(project, "x")
    assert mended.stdout.startswith("ran x")
    assert "making .venv" not in mended.stderr  # pip had changed nothing


def test_a_killed_installation_is_made_anew_and_two_at_once_take_turns(project: Path) -> None:
    slow = environment(SLOW_BUILD="4")
    killed = subprocess.Popen(
        [str(project / "hadal"), "x"], cwd=project, env=slow, stderr=subprocess.PIPE, text=True
    )
    assert killed.stderr is not None
    for line in killed.stderr:
        if "installing hadal" in line:
            break
    children = subprocess.run(["pgrep", "-P", str(killed.pid)], capture_output=True, text=True)
    installer = int(children.stdout)  # pip, its child, lives on for a moment and holds the lock
    os.kill(killed.pid, signal.SIGKILL)
    os.kill(installer, signal.SIGKILL)
    killed.wait()
    assert not (project / ".venv" / "hadal-stamp").exists()

    two = [
        subprocess.Popen(
            [str(project / "hadal"), str(number)], cwd=project, env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in (1, 2)
    ]  # fmt: skip
    answers = [process.communicate(timeout=120) for process in two]
    assert [out for out, _ in answers] == [f"ran {number} in {project}\n" for number in (1, 2)]
    notes = "".join(err for _, err in answers)
    assert notes.count("starting afresh") == 1 and notes.count("installed in") == 1
    assert "another installation is running here" in notes


@pytest.mark.long
def test_a_clone_installs_hadal_itself(tmp_path: Path) -> None:
    """From nothing to a help text, with all real dependencies; then help again within a second."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    first = subprocess.run(
        [str(clone / "hadal"), "--help"], env=environment(), capture_output=True, text=True
    )
    assert first.returncode == 0 and "quickstart" in first.stdout, first.stderr
    start = time.monotonic()
    second = subprocess.run(
        [str(clone / "hadal"), "--help"], env=environment(), capture_output=True, text=True
    )
    assert time.monotonic() - start < 1
    assert (second.stdout, second.stderr) == (first.stdout, "")
    assert subprocess.run([str(clone / "hadal"), "doctor", "--json"], env=environment()).returncode == 0
