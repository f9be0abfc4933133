"""The files that docs/extending.md shows, written beside those that there are. Not a test itself."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs" / "extending.md"
LONGEST = 60
"""Lines that a section may have."""


def section(title: str) -> str:
    """The text of a section."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", DOCS.read_text(), re.M | re.S)
    assert found, title
    return found[1]


def example(title: str, language: str = "python") -> str:
    """The first block of code in a section, which is not longer than it may be."""
    text = section(title)
    assert text.count("\n") < LONGEST, title
    found = re.search(rf"```{language}\n(.*?)```", text, re.S)
    assert found, title
    return found[1]


def add_module(package: ModuleType, name: str, source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `source` a file of the package, by that name, for the time of a test."""
    (folder / f"{name}.py").write_text(source)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, f"{package.__name__}.{name}", raising=False)
