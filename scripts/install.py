"""Makes or repairs .venv for the root script `./hadal`. Standard library only.

Not for calling by hand: `./hadal` runs it when the stamp in .venv does not fit. What it holds to:
- the stamp is written last, so a killed installation never looks finished;
- the lock file holds a word while pip works, and a .venv found beside that word is made anew,
  since pip counts a half-unpacked package as installed;
- one at a time: the lock's file descriptor is inherited by pip, so even a pip whose parent was
  killed keeps later installations waiting until it is gone;
- pip's own settings (index, find-links, proxies) stay in force;
- everything it prints goes to stderr, as stdout belongs to the command that follows.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "hadal-stamp"
LOG = VENV / "hadal-install.log"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
BYTES_NEEDED = 2_000_000_000  # torch's CPU build unpacks to about 0.8 GB, transformers to 0.1 GB


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--key", required=True)
    arguments.add_argument("--extra", required=True, choices=["base", "test"])
    arguments.add_argument("--python", required=True)
    options = arguments.parse_args()
    try:
        with Lock() as lock:
            if not is_current(options.key, options.extra, options.python):
                install(lock, options.key, options.extra, options.python)
    except KeyboardInterrupt:
        say("installation stopped; the same command starts it again")
        return 130
    except InstallError as error:
        say(str(error))
        return 2
    except OSError as error:
        say(f"the installation failed: {error}. Check the free space and the permissions of {ROOT}")
        return 2
    return 0


class InstallError(Exception):
    """An installation that cannot go on; its text names the cause and the remedy."""


class PipError(InstallError):
    """pip failed; `touched` tells whether it had begun to change what is installed."""

    def __init__(self, text: str, touched: bool) -> None:
        super().__init__(text)
        self.touched = touched


class Lock:
    """Only one installation at a time; the kernel frees the lock when its last holder dies.

    `interrupted` tells whether the installation before this one was cut off while pip worked.
    """

    def __enter__(self) -> Lock:
        self.file = open(ROOT / ".venv.lock", "a+")
        os.set_inheritable(self.file.fileno(), True)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another installation is running here; waiting for it")
            fcntl.flock(self.file, fcntl.LOCK_EX)
        self.file.seek(0)
        self.interrupted = bool(self.file.read())
        return self

    def begin(self) -> None:
        self.file.write("installing\n")
        self.file.flush()
        self.interrupted = True

    def end(self) -> None:
        self.file.truncate(0)
        self.interrupted = False

    def __exit__(self, *_: object) -> None:
        self.file.close()


def is_current(key: str, extra: str, python: str) -> bool:
    """The same question as in `./hadal`, asked again once the lock is held."""
    if not STAMP.exists() or not (VENV / "bin" / "python").exists():
        return False
    old_key, old_extra, old_python = STAMP.read_text().splitlines()
    return old_key == key and extra in ("base", old_extra) and python in ("python:", old_python)


def install(lock: Lock, key: str, extra: str, python: str) -> None:
    started = time.monotonic()
    refuse_what_cannot_work()
    test_wanted = extra == "test" or old_stamp_has_test()
    fresh = lock.interrupted or not venv_is_usable(python)
    if lock.interrupted:
        say("the last installation was interrupted: starting afresh")
    lock.begin()
    if fresh:
        say(f"making .venv with Python {platform.python_version()}")
        run([sys.executable, "-I", "-m", "venv", "--clear", str(VENV)], "making .venv", log=None)
    STAMP.unlink(missing_ok=True)
    LOG.unlink(missing_ok=True)

    torch = torch_requirement()
    if torch and not has_nvidia_gpu() and cpu_index_answers():
        say("no NVIDIA GPU here: taking torch's CPU build (about 200 MB)")
        # Without dependencies: those come with the next step, from where pip always takes them.
        patience = ["--timeout", "15", "--retries", "1"]
        pip("torch", ["--no-deps", "--index-url", CPU_INDEX, *patience, torch], needed=False)
    what = "hadal and the tools of its tests" if test_wanted else "hadal"
    say(f"installing {what}" + ("; several hundred MB the first time" if fresh else ""))
    project = f"{ROOT}[test]" if test_wanted else str(ROOT)
    wheels_only = ["--only-binary", ":all:", "--constraint", str(ROOT / "constraints.txt")]
    try:
        pip(what, [*wheels_only, "--editable", project])
    except PipError as error:
        if not error.touched:  # pip fetches everything before it unpacks anything
            lock.end()
        raise
    lock.end()
    unfinished = STAMP.with_suffix(".new")
    unfinished.write_text(f"{key}\n{'test' if test_wanted else 'base'}\n{python}\n")
    unfinished.replace(STAMP)
    say(f"installed in {time.monotonic() - started:.0f} s")


def refuse_what_cannot_work() -> None:
    if platform.system() == "Darwin" and platform.machine() == "x86_64":
        raise InstallError(
            "torch has no builds for Intel Macs or for an Intel Python under Rosetta. "
            "On an Apple-silicon Mac, install an arm64 Python and point HADAL_PYTHON to it"
        )
    free = shutil.disk_usage(ROOT).free
    if free < BYTES_NEEDED and not STAMP.exists():
        raise InstallError(
            f"{free / 1e9:.1f} GB are free in {ROOT}, and the installation needs about "
            f"{BYTES_NEEDED / 1e9:.0f} GB. Free some space and run this again"
        )


def venv_is_usable(python: str) -> bool:
    """Whether .venv holds a working pip and, where a certain Python was asked for, that Python."""
    asked = "import sys, pip; print(sys.base_prefix, *sys.version_info[:2])"
    try:
        answer = subprocess.run([VENV / "bin" / "python", "-I", "-c", asked], capture_output=True, text=True)
    except OSError:
        return False
    if answer.returncode != 0:
        return False
    return python == "python:" or answer.stdout.strip() == " ".join(
        map(str, [sys.base_prefix, *sys.version_info[:2]])
    )


def old_stamp_has_test() -> bool:
    """The test tools stay once they are there: going back and forth would reinstall each time."""
    return STAMP.exists() and STAMP.read_text().splitlines()[1] == "test"


def torch_requirement() -> str | None:
    """The requirement as pyproject.toml states it, so that it is written in one place."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project.get("dependencies", []):
        if re.match(r"torch\b(?![-.])", requirement):
            return str(requirement)
    return None


def has_nvidia_gpu() -> bool:
    return os.path.exists("/dev/nvidia0") or shutil.which("nvidia-smi") is not None


def cpu_index_answers() -> bool:
    """Whether the CPU-only builds can be had from their own index, asked for three seconds at most.

    False where torch's ordinary build is without CUDA anyhow (macOS), where pip is told to use an
    index of the user's, and where torch is there already.
    """
    if platform.system() != "Linux":
        return False
    python = str(VENV / "bin" / "python")
    settings = subprocess.run(
        [python, "-I", "-m", "pip", "config", "list"], capture_output=True, text=True
    ).stdout
    if re.search(r"\.(index-url|no-index)=", settings):
        return False
    there = [python, "-I", "-m", "pip", "show", "--quiet", "torch"]
    if subprocess.run(there, capture_output=True).returncode == 0:
        return False
    try:
        with urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=3) as answer:
            return bool(answer.status == 200)
    except OSError:  # URLError and timeouts are OSErrors: no network, a proxy's refusal, a blocked host
        return False


def pip(what: str, arguments: list[str], needed: bool = True) -> None:
    # --no-user: a `user = true` in pip's settings is an error inside a virtual environment.
    command = [str(VENV / "bin" / "python"), "-I", "-m", "pip", "install", "--no-user"]
    run([*command, "--progress-bar", "off", *arguments], f"installing {what}", log=LOG, needed=needed)


def run(command: list[str], doing: str, log: Path | None, needed: bool = True) -> None:
    """Run a step with its output in the log; short lines say what it is at, at most one in 10 s."""
    # The caller's folder and PYTHONPATH hold modules of the caller's, which are none of pip's business.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", cwd=ROOT, env=environment, close_fds=False,
    )  # fmt: skip
    assert process.stdout is not None
    lines: list[str] = []
    said = started = time.monotonic()
    try:
        for line in process.stdout:
            lines.append(line)
            if log is not None:
                with log.open("a") as file:
                    file.write(line)
            now = time.monotonic()
            if label := progress(line):
                if label.startswith("unpacking") or now - said > 10:
                    say(f"  {label} ({now - started:.0f} s)")
                    said = now
        status = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    if status != 0 and needed:
        tail = "".join(f"    {line.rstrip()}\n" for line in lines[-12:])
        where = f"; the whole log is {log}" if log is not None else ""
        touched = any(line.startswith("Installing collected packages") for line in lines)
        raise PipError(f"{doing} failed{where}. Its last lines:\n{tail}".rstrip(), touched)


def progress(line: str) -> str | None:
    words = line.split()
    if line.startswith(("Collecting ", "Downloading ", "  Downloading ")):
        return f"fetching {words[1].rsplit('/', 1)[-1]}"
    if line.startswith("Installing collected packages"):
        return f"unpacking {len(words) - 3} package(s)"
    return None


def say(text: str) -> None:
    print(f"hadal: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
