"""Which fences this machine can put up, found by putting each up and running a program inside it."""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .child import Child, ChildEnded, ChildLate

LAYERS = ("namespaces", "bubblewrap", "landlock", "seccomp", "uid")
"""In the order in which a report names them; limits and deadlines hold everywhere and are not among them."""

_INSIDE = Path(__file__).resolve().parent / "inside"
_START_SECONDS = 30.0
GRACE = 10.0  # seconds past a job's own deadline in which its keeper must have reported
_FIRST_UID = 60800  # a range that neither people nor the system's services are given


class CannotStart(Exception):
    """A keeper did not come up; the message says why."""


def python() -> str:
    """The interpreter without its virtual environment, since that may lie where an unprivileged uid cannot look."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@functools.cache
def readable() -> tuple[str, ...]:
    """What a program needs to read: Python's library, the system's shared libraries, the time zones."""
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    found = [sysconfig.get_path(name, vars=base) for name in ("stdlib", "platstdlib")]
    found += [os.path.join(sys.base_exec_prefix, "lib"), "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"]
    found += ["/usr/share/zoneinfo", "/etc/localtime", "/etc/ld.so.cache"]
    return tuple(dict.fromkeys(path for path in found if os.path.exists(path)))


def start_keeper(layers: Iterable[str], folder: str, place: int = 0) -> Child:
    """A keeper with these layers up, ready for jobs; `folder` is where it makes private folders.

    Raises CannotStart where a layer cannot be put up.
    """
    wanted = [layer for layer in LAYERS if layer in layers]
    uid = _FIRST_UID + (os.getpid() + place) % 300
    config = {"layers": wanted, "readable": readable(), "folder": folder, "uid": uid}
    command = [python(), "-P", "-s", "-S", str(_INSIDE / "boot.py"), "keeper", json.dumps(config)]
    if "bubblewrap" in wanted:
        command = _in_bubblewrap(command, folder)
    # A fixed seed for hashes: a program whose answer hangs on the order of a set gets the same verdict each time.
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TZ": "UTC", "PYTHONUTF8": "1", "PYTHONHASHSEED": "0",
                   "MALLOC_ARENA_MAX": "1"}  # fmt: skip
    child = Child(command, environment, "/")
    try:
        hello = child.receive(_START_SECONDS, 1 << 16)
        if hello != {"ready": True}:
            raise CannotStart(str(hello.get("failed", hello) if isinstance(hello, dict) else hello)[:300])
    except (ChildEnded, ChildLate) as error:
        child.kill()
        raise CannotStart(f"it did not start ({error or 'no answer'})") from None
    except BaseException:
        child.kill()
        raise
    return child


def _in_bubblewrap(command: list[str], folder: str) -> list[str]:
    binary = shutil.which("bwrap")
    if binary is None:
        raise CannotStart("bwrap is not installed")
    # The shell stays between: bwrap dies with the thread that started it, and a thread of ours may end before.
    out = ["/bin/sh", "-c", '"$@"; exit $?', "sh", binary, "--unshare-all", "--die-with-parent", "--cap-drop", "ALL"]
    for path in (*readable(), str(_INSIDE), python()):
        out += ["--ro-bind", path, path]
    return [*out, "--dev", "/dev", "--bind", folder, folder, "--chdir", "/", *command]


def run_in(keeper: Child, limits: Mapping[str, Any], job: Mapping[str, Any]) -> dict[str, Any]:
    """Have a keeper run a job of program, stdin, names and tests, None for none; what it says of it, as a Result has
    it, and whether it was its last. Raises ChildEnded, ChildLate, and ValueError where it talks nonsense."""
    checked = job["tests"] is not None
    keeper.send({**limits, "checked": checked}, GRACE)
    keeper.send({name: job[name] for name in ("program", "stdin", "names")}, GRACE)
    answer = keeper.receive(limits["seconds"] + GRACE, 1 << 16)
    if checked and answer == {"tests": True}:  # its program is loaded: before that they are nowhere near it
        keeper.send({name: job[name] for name in ("tests", "names")}, GRACE)
        answer = keeper.receive(limits["seconds"] + GRACE, 1 << 16)
    sizes = answer.pop("sizes", None) if isinstance(answer, dict) else None
    if not isinstance(sizes, list) or not all(type(size) is int and 0 <= size <= limits["output"] for size in sizes):
        raise ValueError("no sizes")
    out, err, said = (keeper.read(size, GRACE).decode("utf-8", "replace") for size in sizes)
    note = answer["note"] or said
    if answer["status"] == "error" and err.rstrip().rpartition("\n")[2].startswith("MemoryError"):
        answer["status"], note = "memory", f"asked for more than {limits['memory']} bytes"
    if answer["status"] == "refused":
        note = f"{note}: {(said or err).strip()[-300:]}"
    return {**answer, "stdout": out, "stderr": err, "note": note}


_TRIAL = {"program": "import wave, zoneinfo, pathlib\npathlib.Path('a').write_text('b')\nprint(6 * 7)", "stdin": "",
          "names": None, "tests": None}  # fmt: skip
_TRIAL_LIMITS = {"seconds": 10.0, "cpu_seconds": 10, "memory": 512 << 20, "disk": 1 << 20, "output": 1 << 16,
                 "files": 64}  # fmt: skip


def failing(layers: Iterable[str]) -> str | None:
    """Why these layers together do not run a small program; None where they do."""
    with tempfile.TemporaryDirectory(prefix="hadal-sandbox-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o711)
        try:
            keeper = start_keeper(layers, folder)
        except CannotStart as error:
            return str(error)
        try:
            answer = run_in(keeper, _TRIAL_LIMITS, _TRIAL)
        except (ChildEnded, ChildLate, ValueError) as error:
            return f"a job in it did not end well ({error or 'no answer'})"
        finally:
            keeper.kill()
    if answer["status"] == "ok" and answer["stdout"] == "42\n":
        return None
    return (answer["note"] + " " + answer["stderr"]).strip().splitlines()[-1][:300]


@functools.cache
def available() -> dict[str, str | None]:
    """For each layer why it is not to be had here, or None where it is. Takes about half a second, once."""
    if sys.platform != "linux":
        return dict.fromkeys(LAYERS, "only Linux has it")
    single = [layer for layer in LAYERS if layer != "uid"]
    with ThreadPoolExecutor(len(single)) as threads:
        reasons = threads.map(lambda layer: failing([layer]), single)
        found: dict[str, str | None] = dict(zip(single, reasons, strict=True))
    if os.getuid() != 0:
        found["uid"] = "only root can give a job another uid"
    else:  # a uid that cannot read Python's library is of use only where a cell shows it
        found["uid"] = failing([*_best_cell(found), "uid"])
    return found


def _best_cell(found: dict[str, str | None]) -> list[str]:
    return [layer for layer in ("namespaces", "bubblewrap") if found[layer] is None][:1]


def chosen() -> tuple[str, ...]:
    """The layers that the sandbox uses here: one cell, and all else that there is."""
    found = available()
    cell = _best_cell(found)
    return tuple(layer for layer in LAYERS if layer in cell or (layer in LAYERS[2:] and found[layer] is None))


def isolates(layers: Iterable[str]) -> bool:
    """Whether a set of layers is enough to run code that nobody trusts: the filter of system calls always, and
    something that hides the machine's files."""
    return "seccomp" in layers and bool({"namespaces", "bubblewrap", "landlock"} & set(layers))
