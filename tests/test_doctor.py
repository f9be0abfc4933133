"""`hadal doctor` on this machine, without torch, and the measurement behind its choice of dtype."""

import json
import subprocess
import sys
import time

import pytest
from promised import was_measured

from hadal.machine.speed import fastest_dtype, matmul_rates


def doctor(
    *arguments: str, python: tuple[str, ...] = (sys.executable, "-P")
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*python, "-m", "hadal", "doctor", *arguments], capture_output=True, text=True, timeout=60
    )


def test_json_names_every_part_of_the_machine() -> None:
    done = doctor("--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["works"] is True
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert set(findings) == {
        "python", "memory", "disk", "terminal", "sandbox", "torch", "gpu", "threads", "speed", "exactness",
    }  # fmt: skip
    assert "float32" in findings["speed"]["text"] and "bfloat16" in findings["speed"]["text"]
    for finding in findings.values():
        assert finding["state"] in ("ok", "note")
        assert bool(finding["remedy"]) == (finding["state"] == "note")


def test_text_has_a_line_for_each_finding_and_says_how_to_begin() -> None:
    done = doctor()
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith(("ok ", "note "))] == [
        "python", "memory", "disk", "terminal", "sandbox", "torch", "gpu", "threads", "speed", "exactness",
    ]  # fmt: skip
    assert "hadal quickstart" in lines[-1]


def test_without_torch_it_names_the_remedy() -> None:
    """-S leaves site-packages out, so that nothing but the standard library and hadal is there."""
    import hadal

    source = hadal.__path__[0].removesuffix("/hadal")
    code = (
        f"import sys; sys.path.insert(0, {source!r}); from hadal.cli import main; sys.exit(main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == ""
    lines = done.stdout.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("missing  torch"))
    assert "No module named 'torch'" in lines[place]
    assert "->" in lines[place + 1] and "install" in lines[place + 1]
    assert lines[-1].startswith("Something is missing")


@pytest.mark.parametrize(
    ("float32", "bfloat16", "choice"),
    # Rates of real machines, GFLOP/s: with bf16 units, without them; and two that hardly differ.
    [(165, 800, "bfloat16"), (150, 43, "float32"), (91, 9, "float32"), (100, 105, "float32")],
)
def test_the_dtype_is_bf16_only_where_it_is_clearly_faster(
    float32: float, bfloat16: float, choice: str
) -> None:
    assert fastest_dtype({"float32": float32, "bfloat16": bfloat16}) == choice


def test_the_measurement_keeps_to_its_time() -> None:
    matmul_rates(0.01)
    start = time.perf_counter()
    rates = matmul_rates(0.4)
    seconds = time.perf_counter() - start
    assert set(rates) == {"float32", "bfloat16"}
    assert 0.3 < seconds < 3
    # 0.5 GFLOP a product: a rate within what any CPU does, from a slow phone's to a large server's.
    assert all(1e8 < rate < 1e14 for rate in rates.values())


def test_it_says_where_what_is_sampled_depends_on_company(monkeypatch: pytest.MonkeyPatch) -> None:
    """The findings of `hadal.engine.promise`, which has tests of its own."""
    import torch

    from hadal.terminal.doctor import exactness

    assert exactness(torch).state == "ok" or not was_measured()
    monkeypatch.setattr("hadal.engine.promise.inexact", lambda model: f"products in {model.dtype} are odd")
    found = exactness(torch)
    assert found.state == "note" and "products in torch.float32 are odd" in found.text and "MKL_CBWR" in found.remedy
