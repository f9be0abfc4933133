"""Models by id, against a local stand-in for the hub that speaks its HTTP interface to huggingface_hub itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
from local_server import LocalServer

from hadal.checkpoints.load import load_model
from hadal.checkpoints.save import save_model
from hadal.errors import UserError
from hadal.library.find import find_model
from hadal.library.shipped import names, repository
from hadal.models.build import build
from hadal.models.dense.config import DenseConfig

CONFIG = DenseConfig(61, 32, 2, 2, 1, 16, 48)
TOKEN = "hf_let_me_in"


class Hub(LocalServer):
    """Repositories in memory: name -> revision -> file -> bytes; the gated ones open to one token."""

    def __init__(self) -> None:
        super().__init__(Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.requests: list[str] = []

    @staticmethod
    def commit(name: str, revision: str) -> str:
        return hashlib.sha1(f"{name}@{revision}".encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.send(status, json.dumps({"error": code}).encode(), X_Error_Code=code, X_Error_Message=code)

    def answer(self) -> None:
        hub = self.server
        hub.requests.append(self.path)
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        if api:
            parts = parts[2:]
        name, rest = "/".join(parts[:2]), parts[2:]
        if name not in hub.repositories:
            return self.refuse(404, "RepoNotFound")
        asked = rest[1] if len(rest) > 1 else "main"
        known = {hub.commit(name, revision): files for revision, files in hub.repositories[name].items()}
        commit = asked if asked in known else hub.commit(name, asked)
        if commit not in known:
            return self.refuse(404, "RevisionNotFound")
        files = known[commit]
        if not api:
            if name in hub.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.refuse(403, "GatedRepo")
            file = "/".join(rest[2:])
            if file not in files:
                return self.refuse(404, "EntryNotFound")
            tag = hashlib.sha256(files[file]).hexdigest()
            return self.send(200, files[file], ETag=f'"{tag}"', X_Repo_Commit=commit)
        data: Any = {"id": name, "modelId": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]}
        if rest[:1] == ["tree"]:
            data = [
                {"type": "file", "path": file, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for file, body in files.items()
            ]
        self.send(200, json.dumps(data).encode(), Content_Type="application/json", X_Repo_Commit=commit)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    server.start()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.stop()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """A small checkpoint in shards, and a file that hadal has no use for."""
    model = build(CONFIG)
    model.initialise(0)
    save_model(tmp_path / "made", CONFIG, model.state_dict(), shard_bytes=20_000)
    files = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    assert len(files) > 3
    return files | {"README.md": b"# A model", "training/optimizer.bin": b"\x80\x04"}


def refused(*words: str, **arguments: Any) -> None:
    with pytest.raises(UserError) as caught:
        find_model(**arguments)
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line, line


def test_a_model_is_downloaded_once_and_then_found_offline(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["someone/small"] = {"main": files}
    cache = tmp_path / "cache"
    folder = find_model("someone/small", cache=cache)
    assert load_model(folder).config == CONFIG
    assert {path.name for path in folder.iterdir()} == files.keys() - {"README.md", "training/optimizer.bin"}
    hub.requests.clear()
    assert find_model("someone/small", cache=cache) == folder
    assert not [path for path in hub.requests if "/resolve/" in path]
    hub.requests.clear()
    assert find_model("someone/small", cache=cache, offline=True) == folder
    assert not hub.requests
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # a hub out of reach is no loss either
    assert find_model("someone/small", cache=cache) == folder


def test_a_revision_is_the_one_that_was_asked_for(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    other = build(CONFIG)
    other.initialise(1)
    save_model(tmp_path / "other", CONFIG, other.state_dict())
    later = {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()}
    hub.repositories["someone/small"] = {"main": files, "v2": later}
    cache = tmp_path / "cache"
    main, second = find_model("someone/small", cache=cache), find_model("someone/small", "v2", cache)
    assert main != second
    assert torch.equal(load_model(second).embed.weight, other.embed.weight)
    assert not torch.equal(load_model(main).embed.weight, other.embed.weight)
    refused("someone/small", "v3", model="someone/small", revision="v3", cache=cache)


def test_a_missing_repository_is_named(hub: Hub, tmp_path: Path) -> None:
    refused("someone/absent", hub.address, "spelling", model="someone/absent", cache=tmp_path)


def test_a_gated_repository_says_how_to_get_in(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["someone/gated"] = {"main": files}
    hub.gated.add("someone/gated")
    refused("someone/gated is gated", "HF_TOKEN", model="someone/gated", cache=tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert load_model(find_model("someone/gated", cache=tmp_path)).config == CONFIG


def test_offline_mode_asks_nobody(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["someone/small"] = {"main": {}}
    refused("someone/small", "offline", model="someone/small", cache=tmp_path, offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused("someone/small", "offline", model="someone/small", cache=tmp_path)
    assert not hub.requests


def test_a_hub_out_of_reach_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    refused("someone/small", "cannot be downloaded", "connection", model="someone/small", cache=tmp_path)


def test_a_repository_of_pickles_is_refused_by_name(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    old = {"config.json": files["config.json"], "pytorch_model.bin": b"\x80\x04"}
    hub.repositories["someone/old"] = {"main": old}
    refused("someone/old", "pytorch_model.bin", "pickle", model="someone/old", cache=tmp_path)
    assert not list(tmp_path.rglob("pytorch_model.bin"))
    hub.repositories["someone/empty"] = {"main": {"config.json": files["config.json"]}}
    refused("someone/empty", "safetensors", model="someone/empty", cache=tmp_path)


def test_folders_come_before_ids_and_other_names_are_neither(hub: Hub, tmp_path: Path) -> None:
    assert find_model(tmp_path) == tmp_path and find_model(str(tmp_path)) == tmp_path
    for name in ("nowhere", "a/b/c", "../no/such", "/absent/model", "some one/x"):
        refused(name, model=name)
    refused("absent", model=tmp_path / "absent")
    assert not hub.requests


def test_mistaken_names_say_what_is_wrong(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused("There is no folder runs/nothing", model="runs/nothing")
    (tmp_path / "runs" / "dense-seed0").mkdir(parents=True)
    refused("Did you mean runs/dense-seed0?", model="runs/dense-sed0")
    (tmp_path / "model.safetensors").write_bytes(b"")
    refused("model.safetensors is a file", "folder", model="model.safetensors")
    for name in ("r1-distill-qwen-1.5b", "DeepSeek-R1-Distill-Qwen-1.5B"):
        refused("Give deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", model=name)
    assert not hub.requests


def test_every_short_name_has_its_weights_somewhere() -> None:
    for name in names():
        assert str(repository(name)).lower() == f"deepseek-ai/deepseek-{name}"
