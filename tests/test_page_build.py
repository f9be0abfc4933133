"""The built page in the package: made from the sources at hand, small, whole, and closed to other hosts."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WEB = ROOT / "web"
PAGE = ROOT / "src" / "hadal" / "server" / "page"


def test_the_committed_build_is_of_these_sources() -> None:
    files = [path for folder in ("src", "public") for path in (WEB / folder).rglob("*") if path.is_file()]
    names = sorted(path.relative_to(WEB).as_posix() for path in files)
    names = sorted([*names, "index.html", "vite.config.ts", "tsconfig.json", "package.json", "package-lock.json"])
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode() + b"\0" + (WEB / name).read_bytes() + b"\0")
    built = (PAGE / "hash.txt").read_text().strip()
    assert built == digest.hexdigest(), "web/ has changed: run `npm ci && npm run build` there and commit the result"


def test_every_file_the_page_names_is_there_and_the_whole_is_small() -> None:
    index = (PAGE / "index.html").read_text()
    named = re.findall(r'(?:src|href)="/([^"]+)"', index)
    manifest = json.loads((PAGE / "manifest.webmanifest").read_text())
    named += [icon["src"].removeprefix("/") for icon in manifest["icons"]]
    for css in PAGE.glob("assets/*.css"):
        named += [url.removeprefix("/") for url in re.findall(r"url\(([^)]+)\)", css.read_text())]
    assert len(named) > 25
    for name in named:
        assert (PAGE / name).is_file(), name
    assert sum(path.stat().st_size for path in PAGE.rglob("*") if path.is_file()) < 1_500_000


def test_nothing_in_the_page_needs_a_looser_policy_or_another_host() -> None:
    index = (PAGE / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\ssrc=)", index), "an inline script"
    assert not re.search(r"<style|\sstyle=|\son\w+=", index), "an inline style or handler"
    for path in [PAGE / "index.html", *PAGE.glob("assets/*.css"), PAGE / "manifest.webmanifest"]:
        text = path.read_text()
        assert not re.search(r"(?:src|href)=\"(?:https?:)?//|url\(\"?(?:https?:|//|data:)|@import", text), path.name
    for script in [*PAGE.glob("assets/*.js"), PAGE / "theme.js"]:
        text = script.read_text()
        assert not re.search(r"\beval\(|\bnew Function\(|\bimportScripts\(", text), script.name
        # Addresses in the code are names of XML namespaces and of things that are never fetched.
        hosts = set(re.findall(r"https?://([\w.-]+)", text))
        assert hosts <= {"www.w3.org", "github.com"}, hosts


def test_the_lock_file_names_no_host() -> None:
    lock = json.loads((WEB / "package-lock.json").read_text())
    assert not [name for name, package in lock["packages"].items() if "resolved" in package]
    pinned = json.loads((WEB / "package.json").read_text())
    for version in (pinned["dependencies"] | pinned["devDependencies"]).values():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)


@pytest.mark.long
def test_the_wheel_carries_the_page(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")  # what pyproject.toml asks for; no isolation, so no download
    tree = tmp_path / "tree"  # a build in place would leave build/ behind, and pack its old files the next time
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    options = ["--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "."], cwd=tree, check=True, timeout=300)
    (wheel,) = tmp_path.glob("hadal-*.whl")
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("hadal/server/page/")}
    files = [path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*") if path.is_file()]
    assert shipped == {f"hadal/server/page/{name}" for name in files}
