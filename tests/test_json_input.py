"""JSON that others wrote: tasks, data sets and conversations read it alike, and what is wrong is one line."""

from __future__ import annotations

import codecs
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hadal.cli import main
from hadal.errors import UserError
from hadal.evaluate.samples import read_evaluation
from hadal.files import read_json_lines
from hadal.tasks import load_tasks
from hadal.tasks.maths import GSM8K
from hadal.train.conversations import read_lines

TASK = '{{"prompt": "What is {n} plus {n}?{extra}", "answer": {answer}}}'
LINE = {
    "task": TASK,
    "data set": '{{"question": "What is {n} plus {n}?{extra}", "answer": "#### {n}", "more": {answer}}}',
    "conversation": '{{"messages": [{{"role": "user", "content": "{extra}"}}, {{"role": "assistant", "content": "a"}}],'
    ' "more": {answer}}}',
}
READ: dict[str, Callable[[Path], list[str]]] = {
    "task": lambda path: [p.prompt for p in load_tasks([str(path)])["mine"].problems],  # type: ignore[attr-defined]
    "data set": lambda path: [p.prompt for p in GSM8K(path).problems("held_out")],
    "conversation": lambda path: [messages[0]["content"] for _, messages, _ in read_lines(path)],
}
READERS = pytest.mark.parametrize("reader", LINE)


def written(folder: Path, reader: str, data: bytes | None = None, answer: str = "1", extra: str = "") -> Path:
    path = folder / "mine.jsonl"
    lines = [LINE[reader].format(n=n, answer=answer if n == 2 else "1", extra=extra) for n in range(12)]
    path.write_bytes(data if data is not None else "\n".join(lines).encode())
    return path


@READERS
def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(reader: str, tmp_path: Path) -> None:
    path = written(tmp_path, reader)
    expected = READ[reader](path)
    path.write_bytes(codecs.BOM_UTF8 + b"\r\n" + path.read_bytes().replace(b"\n", b"\r\n\r\n") + b"\r\n \r\n")
    assert READ[reader](path) == expected and len(expected) == 12


@READERS
@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\u00a0", "\x7f"])
def test_what_only_some_programs_take_for_a_line_end_is_text(reader: str, character: str, tmp_path: Path) -> None:
    found = READ[reader](written(tmp_path, reader, extra=f"a{character}b"))
    assert len(found) == 12 and all(f"a{character}b" in text for text in found)


@READERS
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("NaN", "holds NaN"), ("Infinity", "holds Infinity"), ("-Infinity", "holds -Infinity"), ("[NaN]", "holds NaN"),
        ("1e999", "holds 1e999"), ("7" * 5000, "a number of 5,000 digits"), ('"\\ud800"', "half a character (\\ud800)"),
        ('{"\\udfff": 1}', "half a character (\\udfff)"), ('{"a": 1, "b": 2, "a": 1}', 'the name "a" twice'),
        ("[" * 3000 + "]" * 3000, "nested too deeply"), ("01", "is not JSON"), ("'a'", "is not JSON"),
        ("1}{", "is not JSON"), ('"a\tb"', "is not JSON"), ('"\\x"', "is not JSON"),
    ],
)  # fmt: skip
def test_what_no_program_can_rely_on_is_named_with_its_line(
    reader: str, value: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        READ[reader](written(tmp_path, reader, answer=value))
    said = str(caught.value)
    assert words in said and "mine.jsonl, line 3 " in said and "\n" not in said and len(said) < 400
    assert caught.value.remedy


@READERS
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xff\n", "line 1 is not UTF-8 text"), (b"\n\n{\"a\": \"\xe4\"}\n", "line 3 is not UTF-8 text (byte 0xe4)"),
        ('{"a": 1}'.encode("utf-16"), "is UTF-16 text"), (b"\xed\xa0\x80", "line 1 is not UTF-8"),
        (b"\x00\n", "line 1 is not JSON"),
    ],
)  # fmt: skip
def test_another_encoding_is_named(reader: str, data: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Save the file as UTF-8|Write one JSON value") as caught:
        READ[reader](written(tmp_path, reader, data))
    assert words in str(caught.value)


def test_a_whole_pair_of_escapes_is_a_character(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('"\\ud83d\\ude00 \\\\ud800"')
    assert list(read_json_lines(tmp_path / "a.jsonl")) == [(1, "\U0001f600 \\ud800")]


def test_a_list_and_a_table_of_rows_are_held_to_the_same(tmp_path: Path) -> None:
    row = '[{"question": "%s", "answer": "#### 3"}]'
    path = tmp_path / "a.json"
    path.write_bytes(codecs.BOM_UTF8 + (row % "a\u2028b").encode())
    assert GSM8K(path).problems("held_out")[0].prompt.startswith("a\u2028b")
    path.write_text(row % "\\ud800")
    with pytest.raises(UserError, match="half a character"):
        GSM8K(path).problems("held_out")
    table = tmp_path / "a.csv"
    table.write_bytes(codecs.BOM_UTF8 + b"question,answer\na,#### 3\n")
    assert len(GSM8K(table).problems("held_out")) == 1
    zipped = tmp_path / "a.jsonl.gz"
    zipped.write_bytes(gzip.compress(codecs.BOM_UTF8 + b'{"question": "a", "answer": NaN}'))
    with pytest.raises(UserError, match="line 1 holds NaN"):
        GSM8K(zipped).problems("held_out")


def test_a_gap_in_a_table_is_no_answer(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    from hadal.tasks.code import MBPP

    rows = [{"task_id": 11, "text": float("nan"), "code": "x = 1", "test_list": ["assert x"]}]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="it has no text or prompt"):
        MBPP(tmp_path / "a.parquet").problems("held_out")


def test_an_evaluation_reads_its_own_problems_again(tmp_path: Path) -> None:
    """They are written with such characters as they are."""
    (tmp_path / "eval.json").write_text('{"hadal_eval": 1, "settings": {"samples": 1}}')
    (tmp_path / "problems.jsonl").write_text(json.dumps({"prompt": "a\u2028b"}, ensure_ascii=False) + "\n")
    assert read_evaluation(tmp_path).problems == [{"prompt": "a\u2028b"}]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./lines.json", "Put one problem on each line and call it lines.jsonl."),
        ("lines.json", "call it lines.jsonl"),
        ("./lines.txt", "is not a task file by its name. A task is a Python file"),
        ("./none.jsonl", "cannot be read (no such file or directory)"),
        ("./none.json", "There is no task file none.json."),
        ("./none", "There is no task file none."),
        (".", "is a folder"),
        ("summs", "Did you mean sums?"),
        ("x" * 5000, "There is no task"),
    ],
)
def test_a_file_that_is_no_task_is_not_said_to_be_absent(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("lines.json", "lines.txt"):
        Path(file).write_text(TASK.format(n=1, answer=2, extra=""))
    assert main(["tasks", "validate", name]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
