"""The rule of the rooms: a room imports only from itself and from rooms below it."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "hadal"
ROOMS = [
    "errors", "files", "rng", "http", "reading", "machine", "ranges", "ops", "models", "text", "checkpoints", "cost",
    "library", "sandbox", "rollout", "tasks", "rewards", "engine", "evaluate", "report", "train", "stages", "recipe",
    "terminal", "server", "cli",
]  # fmt: skip
WITHOUT_TORCH = (
    "errors", "files", "rng", "http", "reading", "machine/__init__", "machine/environment", "machine/spinning",
    "machine/cores", "machine/memory", "checkpoints/__init__", "checkpoints/header", "cost",
    "library/__init__", "library/find", "library/hub", "library/info", "library/record", "library/shipped", "rollout",
    "report", "cli",
)  # fmt: skip
"""Rooms, and files of rooms."""


class _AtRunTime(ast.NodeTransformer):
    """Without the imports that only a type checker sees."""

    def visit_If(self, node: ast.If) -> ast.AST:
        return ast.Pass() if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)


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
        if path.parts[0].removesuffix(".py") in WITHOUT_TORCH or str(path.with_suffix("")) in WITHOUT_TORCH:
            tree = _AtRunTime().visit(ast.parse((SOURCE / path).read_text()))
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


def test_a_family_says_its_numbers_names_and_cost_without_torch() -> None:
    program = (
        "import sys\n"
        "from hadal.cost import flops, memory\n"
        "from hadal.library import info\n"
        "from hadal.models.families import families\n"
        "from hadal.models.names import released_name\n"
        "assert {'dense', 'deepseek'} <= families().keys()\n"
        "for family in families().values():\n"
        "    for kind in family.types:\n"
        "        config = kind(64)\n"
        "        assert flops.parameters(config).total and released_name('layers.0.mlp.x', config)\n"
        "print('LOADED', *({'torch', 'numpy'} & set(sys.modules)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED"


def families() -> list[str]:
    return sorted(path.parent.name for path in (SOURCE / "models").glob("*/__init__.py"))


def own_names(family: str) -> set[str]:
    """The classes that a family's folder defines."""
    trees = [ast.parse(path.read_text()) for path in (SOURCE / "models" / family).glob("*.py")]
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def family_faults(source: str, path: Path) -> list[str]:
    """What a file must not do: import another family than its own, or, outside `models`, ask for one's classes."""
    tree, found = ast.parse(source), []
    for family in families():
        at_home = path.parts[:2] == ("models", family)
        inside = path.parts[0] == "models"
        if inside and not at_home:
            package = ("hadal", *path.parts[:-1])
            names = [name for name in imported(tree, package) if f"{name}.".startswith(f"hadal.models.{family}.")]
            found += [f"{path} imports {name}" for name in names]
        if not at_home:
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                    asked = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
                    asked |= {n.attr for n in ast.walk(node.args[1]) if isinstance(n, ast.Attribute)}
                    found += [f"{path} asks for {name}" for name in sorted(asked & own_names(family))]
    return found


def test_families_know_nothing_of_each_other_and_nobody_asks_which_it_is() -> None:
    assert families() and all(own_names(family) for family in families())
    assert [fault for path in files() for fault in family_faults((SOURCE / path).read_text(), path)] == []


def test_the_rule_of_the_families_sees_what_breaks_it() -> None:
    relative = "from ..deepseek.network import Deepseek"
    late = "def late():\n    import hadal.models.deepseek"
    for source in ("from hadal.models.deepseek.config import DeepseekConfig", relative, late):
        assert family_faults(source, Path("models/dense/network.py"))
        assert not family_faults(source, Path("models/deepseek/cost.py"))
    for asked in ("DeepseekConfig", "int | network.Deepseek", "(Router, Decoder)"):
        source = f"isinstance(x, {asked})"
        assert family_faults(source, Path("train/losses.py")) and family_faults(source, Path("models/packed.py"))
    assert not family_faults("isinstance(x, Decoder)", Path("train/losses.py"))


def test_reports_are_made_without_torch() -> None:
    modules = [".".join(("hadal", *path.with_suffix("").parts)) for path in files() if path.parts[0] == "report"]
    program = f"import sys, {', '.join(modules)}\nprint('torch' in sys.modules)".replace(".__init__", "")
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "False\n"
