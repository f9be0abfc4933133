"""The client of a SandboxFusion-style service, against one that runs programs in the sandbox here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from local_server import served

from hadal.errors import UserError
from hadal.sandbox import Job, Limits, RemoteSandbox, Result, Sandbox, check_asserts, check_stdin, layers
from hadal.sandbox.remote import read_answer

pytestmark = pytest.mark.skipif(not layers.isolates(layers.chosen()), reason="nothing here isolates a program")


class _Service(BaseHTTPRequestHandler):
    sandbox: Sandbox
    instead: bytes | int | None = None

    def do_POST(self) -> None:  # noqa: N802
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/run_code" and asked["language"] == "python"
        if isinstance(self.instead, int):
            self.send_error(self.instead)
            return
        limits = Limits(seconds=asked["run_timeout"], memory=asked["memory_limit_MB"] << 20)
        ran = self.sandbox.run(asked["code"], asked["stdin"], limits=limits)
        status = "TimeLimitExceeded" if ran.status == "timeout" else "Finished"
        run = {"status": status, "execution_time": ran.seconds, "return_code": ran.exit_code, "stdout": ran.stdout,
               "stderr": ran.stderr}  # fmt: skip
        answer = {"status": "Success" if ran.ok else "Failed", "message": "", "compile_result": None,
                  "run_result": run, "executor_pod_name": None, "files": {}}  # fmt: skip
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.instead if self.instead is not None else json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with Sandbox(places=2) as sandbox:
        _Service.sandbox = sandbox
        with served(_Service) as server:
            yield server.address


@pytest.mark.parametrize(
    ("program", "status", "code", "out"),
    [
        ("print(input() * 2)", "ok", 0, "abab\n"),
        ("import sys; print(1); sys.exit(7)", "error", 7, "1\n"),
        ("while True: pass", "timeout", None, ""),
        ("x = bytearray(1 << 40)", "memory", 1, ""),
    ],
)
def test_results_are_those_of_the_sandbox_here(url: str, program: str, status: str, code: int | None, out: str) -> None:
    result = RemoteSandbox(url, limits=Limits(seconds=1)).run(program, stdin="ab")
    assert (result.status, result.stdout, result.layers) == (status, out, ("remote",)), result
    assert (code is None or result.exit_code == code) and bool(result.note) == (status != "ok")
    assert 0 < result.seconds < 5


def test_programs_are_judged_by_it(url: str) -> None:
    remote = RemoteSandbox(url + "/run_code", connections=2)
    assert check_stdin(remote, "print(int(input()) + 1)", [("1", "2"), ("2", "3")]).ok
    assert check_asserts(remote, "def f(x): return x", "assert f(1) == 1").ok
    assert not check_asserts(remote, "def f(x): return x", "assert f(1) == 2").ok
    early = check_asserts(remote, "raise SystemExit(0)", "assert False")
    assert not early.ok and "before its tests" in early.note
    outputs = [result.stdout for result in remote.map([Job(f"print({n})") for n in range(5)])]
    assert outputs == [f"{n}\n" for n in range(5)]


@pytest.mark.parametrize(
    ("instead", "note"),
    [
        (b"<html>", "no valid answer"),
        (b"[" * 100_000, "no valid answer"),
        (b"null", "it ran nothing"),
        (b'{"status": "SandboxError", "message": "no room"}', "no room"),
        (b'{"run_result": {"status": "Finished", "return_code": "0"}}', "not in the form"),
        (500, "answers 500"),
    ],
)
def test_a_service_that_fails_gives_refused(
    url: str, instead: bytes | int, note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Service, "instead", instead)
    result = RemoteSandbox(url).run("print(1)")
    assert result.status == "refused" and note in result.note and result.exit_code is None


def test_a_wrong_address_is_the_users_error(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="not the address"):
        RemoteSandbox("localhost:8080")
    with pytest.raises(UserError, match="Nothing listens"):
        RemoteSandbox("http://127.0.0.1:9").run("print(1)")
    monkeypatch.setattr(_Service, "instead", 404)
    with pytest.raises(UserError, match="404"):
        RemoteSandbox(url).run("print(1)")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=5,
)
RUN = ["status", "execution_time", "return_code", "stdout", "stderr"]


@given(json_values | st.fixed_dictionaries({"run_result": st.dictionaries(
    st.sampled_from(RUN), json_values | st.sampled_from(["Finished", "Error", "TimeLimitExceeded"]))}))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_an_answer_is_a_result_or_a_value_error(answer: Any) -> None:
    try:
        result = read_answer(answer, Limits(output=10), 1.0)
    except ValueError:
        return
    assert isinstance(result, Result) and result.status in ("ok", "error", "timeout", "memory")
    assert len(result.stdout) <= 10 and len(result.stderr) <= 10
