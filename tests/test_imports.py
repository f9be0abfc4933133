"""The rule of the rooms: a room imports only from itself and from rooms below it."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "hadal"
ROOMS = ["errors", "spinning", "environment", "files", "configs", "ops", "models", "text", "cost", "library",
         "sandbox", "tasks", "rewards", "engine", "evaluate", "report", "train", "recipe", "terminal", "server",
         "cli"]  # fmt: skip
WITHOUT_TORCH = ("errors", "spinning", "environment", "files", "configs", "cost", "library", "report", "cli")


def imported(tree: ast.AST, package: tuple[str, ...]) -> Iterator[str]:
    """Every module that a tree imports, anywhere in it, as a dotted name; relative ones resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*start, *([node.module] if node.module else [])])
            # `from hadal import ops` names a room in its last part.
            yield from (f"{base}.{alias.name}" for alias in node.names)


def rooms_imported(source: str, path: Path) -> set[str]:
    """The rooms that a file of the package imports; `path` is relative to the package's folder."""
    package = ("hadal", *path.parts[:-1])
    names = (name.split(".") for name in imported(ast.parse(source), package))
    return {parts[1] for parts in names if parts[0] == "hadal" and len(parts) > 1 and parts[1] in ROOMS}


def faults(source: str, path: Path) -> list[str]:
    room = path.parts[0].removesuffix(".py")
    return [
        f"{path}: {room} imports {other}"
        for other in sorted(rooms_imported(source, path))
        if ROOMS.index(other) > ROOMS.index(room)
    ]


def files() -> list[Path]:
    found = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))
    return [path for path in found if str(path) not in ("__init__.py", "__main__.py")]


def test_every_file_lives_in_a_known_room() -> None:
    assert {path.parts[0].removesuffix(".py") for path in files()} <= set(ROOMS)


def test_rooms_import_only_from_below() -> None:
    assert [fault for path in files() for fault in faults((SOURCE / path).read_text(), path)] == []


@pytest.mark.parametrize(
    "source",
    [
        "import hadal.engine",
        "from hadal.engine import llm",
        "from hadal import engine",
        "from .. import engine",
        "from ..engine.llm import LLM",
        "def late():\n    from hadal.engine import llm",
    ],
)
def test_the_rule_sees_every_form_of_import(source: str) -> None:
    assert faults(source, Path("models/dense.py")) == ["models/dense.py: models imports engine"]
    assert faults(source, Path("train/loop.py")) == []


def test_rooms_that_start_at_once_never_name_torch() -> None:
    for path in files():
        if path.parts[0].removesuffix(".py") in WITHOUT_TORCH:
            tree = ast.parse((SOURCE / path).read_text())
            assert not [name for name in imported(tree, ()) if name.split(".")[0] == "torch"], path


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], *([name, "--help"] for name in ("quickstart", "eval", "serve", "doctor"))],
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from hadal.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'rich', 'tokenizers', 'transformers', 'fastapi', 'sqlalchemy', 'httpx'}\n"
        "print('LOADED', *(heavy & set(sys.modules)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "LOADED"


def test_reports_are_made_without_torch() -> None:
    modules = [".".join(("hadal", *path.with_suffix("").parts)) for path in files() if path.parts[0] == "report"]
    program = f"import sys, {', '.join(modules)}\nprint('torch' in sys.modules)".replace(".__init__", "")
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "False\n"
