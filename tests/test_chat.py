"""The chat: the parts without a terminal, and a whole conversation with a real (untrained) model."""

import io
import json
import signal
import sys

import pytest
from rich.console import Console

from hadal.cli import main
from hadal.errors import UserError
from hadal.library.record import write_run
from hadal.terminal import chat as chat_module
from hadal.terminal import model as model_module
from hadal.terminal.chat import (
    Chat,
    Command,
    fold,
    parse_command,
    save,
    transcript,
)
from hadal.terminal.clean import clean, one_line, strip_controls
from hadal.terminal.model import Model, Reply
from hadal.text.tokenizer import Tokenizer

# ------------------------------------------------------------------------------------- stripping


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("plain π 中 🦑\ttab\nline", "plain π 中 🦑\ttab\nline"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b2Jcleared", "cleared"),
        ("\x1bc reset", " reset"),
        ("a\x00b\x07c\x08d\x7fe\x85f\x9fg", "abcdefg"),
        ("win\r\nover\rwritten", "win\noverwritten"),
        ("\u202etxt.exe\u2066x\u2069\u200f", "txt.exex"),
        ("cut off \x1b[3", "cut off 3"),
        ("\ud800lone", "lone"),
    ],
)
def test_clean(text, left):
    assert clean(text) == left


def test_an_escape_cut_in_two_by_the_stream_is_harmless():
    assert "\x1b" not in strip_controls("a\x1b") + strip_controls("[2Jb")


def test_one_line_is_one_line():
    assert one_line("a\n\n b\t\x1b[1mc") == "a b c"
    assert one_line("abcdef", 4) == "abc…"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_words(["strawberry"])


# ------------------------------------------------------------------------------------- commands and saving


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("How many r?", None),
        ("//usr/bin", None),
        ("/think on", Command("think", "on")),
        ("  /QUIT  ", Command("quit")),
        ("/save my notes.md", Command("save", "my notes.md")),
        ("/", Command("")),
    ],
)
def test_parse_command(line, command):
    assert parse_command(line) == command


def reply(**changes):
    base = dict(
        question="How many r in strawberry?", thought="s 0 r 1", answer=" 3",
        response="<think>s 0 r 1</think> 3", tokens=33, thought_tokens=31, seconds=0.5,
        thought_seconds=0.42, right=True, gold="3",
    )  # fmt: skip
    return Reply(**(base | changes))


def test_fold():
    assert fold(reply()) == "thought for 0.4 s, 31 tokens"
    assert fold(reply(thought_tokens=1, answer="", stopped=True)) == "thought for 0.4 s, 1 token (stopped)"


def test_transcript_keeps_hostile_text_in_its_fence():
    text = transcript(
        "run\x1b[1m", [reply(thought="```\n# not a heading\x1b[2J", answer="````", right=False, gold="3")]
    )
    assert "\x1b" not in text
    assert "````text\n```\n# not a heading\n````" in text
    assert "`````text\n````\n`````" in text
    assert "Wrong; the right answer:" in text and "## How many r in strawberry?" in text


def test_save_overwrites_nothing(tmp_path):
    path = tmp_path / "sub" / "talk.md"
    save(path, "run", [reply()])
    before = path.read_text()
    with pytest.raises(UserError, match="exists already"):
        save(path, "run", [])
    assert path.read_text() == before
    with pytest.raises(UserError, match="exists already"):
        save(tmp_path, "run", [])
    with pytest.raises(UserError, match="cannot write"):
        save(path / "inside.md", "run", [reply()])


# ------------------------------------------------------------------------------------- a whole conversation


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer):
    """A run folder whose model is real and untrained."""
    import torch

    from hadal.checkpoints.save import save_model
    from hadal.models.build import build
    from hadal.models.dense.config import DenseConfig

    folder = tmp_path_factory.mktemp("runs") / "dense-seed0"
    torch.manual_seed(0)
    config = DenseConfig(vocab_size=tokenizer.size, hidden_size=32, num_hidden_layers=1, max_position_embeddings=96)
    model = build(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    save_model(folder, config, model.state_dict())
    tokenizer.save(folder)
    tasks = ["letters", "sums"]
    write_run(folder, {"name": "dense-seed0", "arch": "dense", "status": "complete", "config": {"tasks": tasks}})
    return folder


@pytest.fixture(scope="module")
def model(run):
    return Model(run)


def test_guessing_ahead_says_the_same_and_how_often_it_was_right(run, model):
    from hadal.engine import EngineConfig

    guessing = Model(run, config=EngineConfig(speculate="ngram"))
    question = "How many r in strawberry? " * 3
    model.asked = guessing.asked = 0
    plain, reply = (each.reply(question, False, lambda *_: None) for each in (model, guessing))
    assert (reply.response, reply.tokens) == (plain.response, plain.tokens)
    assert plain.drafted == 0 and reply.drafted >= reply.accepted


def converse(model, lines, width=80, terminal=False):
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=terminal, highlight=False, legacy_windows=False)
    conversation = Chat(model, console)
    conversation.greet()
    feed = iter(lines)

    def read():
        try:
            line = next(feed)
        except StopIteration:
            raise EOFError from None
        if isinstance(line, BaseException):
            raise line
        return line

    conversation.loop(read)
    return stream.getvalue(), conversation


def test_a_conversation_is_answered_and_checked(model, tmp_path):
    path = tmp_path / "talk.md"
    lines = [
        "", "   ", "/help", "/think on", "How many r in strawberry?", "/think off",
        "What is 3 + 4?", "/think auto",
        "What is the capital of France?", "1", "/thought", f"/save {path}", f"/save {path}",
        "/save", "/think so", "/dance", "/examples", "/new", "/save x", "/quit", "never asked",
    ]  # fmt: skip
    shown, conversation = converse(model, lines)
    shown = " ".join(shown.split())
    assert "letters" in shown and "hadal quickstart --minutes 60" in shown
    assert "thought for" in shown and "tok/s" in shown
    assert "✓ right" in shown or "✗ wrong, it is 3" in shown
    assert "not one of its tasks" in shown
    for piece in (
        "exists already",
        "Say /save FILE.",
        "Say /think on",
        "There is no /dance",
        "nothing to save yet",
    ):
        assert piece in shown
    assert path.read_text().startswith("# A conversation with dense-seed0")
    assert conversation.replies == [] and "never asked" not in shown


def test_thinking_is_switched_by_ids(model):
    asked = [model.reply("What is 3 + 4?", thinking, lambda *_: None) for thinking in (True, False)]
    assert asked[0].thought is not None and asked[0].response.startswith("<think>")
    assert asked[1].thought is None and "<think>" not in asked[1].response
    assert {r.gold for r in asked} == {"7"} and None not in {r.right for r in asked}


@pytest.mark.parametrize("terminal", [False, True])
def test_forty_columns(model, terminal):
    shown, conversation = converse(model, ["/think on", "How many r in strawberry?"], width=40, terminal=terminal)
    assert "thought for" in shown and "letters" in shown
    answer = clean(conversation.replies[0].answer)  # streamed as it comes: a terminal breaks its lines, a pipe none
    for line in shown.splitlines():
        assert len(clean(line)) <= 40 or terminal or clean(line).strip() in answer, line


def test_an_answer_that_comes_to_its_limit_says_so(model, monkeypatch):
    monkeypatch.setattr(model_module, "_MAX_TOKENS", 3)
    shown, conversation = converse(model, ["What is 3 + 4?"])
    (reply,) = conversation.replies
    assert reply.cut and reply.tokens == 3 and "3 tokens, " in shown and "cut off there" in shown


def test_ctrl_c_stops_the_answer_and_then_leaves(model, monkeypatch):
    stream = model.llm.stream

    def interrupted(prompt, params):
        ids = stream(prompt, params)
        yield next(ids)
        signal.raise_signal(signal.SIGINT)
        yield from ids

    monkeypatch.setattr(model.llm, "stream", interrupted)
    shown, conversation = converse(model, ["What is 3 + 4?", KeyboardInterrupt(), "never asked"])
    assert len(conversation.replies) == 1 and conversation.replies[0].stopped
    assert conversation.replies[0].right is None and "right" not in shown.splitlines()[-3]


def test_ctrl_c_twice_leaves_at_once(model, monkeypatch):
    def stuck(prompt, params):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        yield 0

    monkeypatch.setattr(model.llm, "stream", stuck)
    shown, conversation = converse(model, ["What is 3 + 4?", "/help"])
    assert conversation.replies == [] and "/save FILE" not in shown
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_question_that_is_too_long_is_told_kindly(model):
    shown, _ = converse(model, ["why " * 400, "What is 3 + 4?"])
    assert "The prompt has" in shown and "tok/s" in shown


def test_ask_json(run, capsys):
    chat_module.ask(run, "How many r in strawberry?", json=True)
    record = json.loads(capsys.readouterr().out)
    assert set(record) == {"question", "thought", "answer", "tokens", "seconds", "cut", "right", "gold"}
    assert record["gold"] == "3" and record["right"] in (True, False)


def test_ask_refuses_nothing_and_too_much(run):
    with pytest.raises(UserError, match="question is empty"):
        chat_module.ask(run, "  ")
    with pytest.raises(UserError, match="The prompt has"):
        chat_module.ask(run, "why " * 400)


def test_lines_come_from_a_pipe(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("What is 3 + 4?\n\xff\n".encode("latin-1"))))
    assert main(["chat", str(run)]) == 0
    out = capsys.readouterr().out
    assert out.count("tok/s") == 2 and "\x1b" not in out


def test_a_task_file_that_has_gone_leaves_the_chat(run, tmp_path):
    import shutil

    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    config = {"tasks": ["sums", "./gone.py"]}
    write_run(moved, {"name": "moved", "arch": "dense", "status": "complete", "config": config})
    model = Model(moved)
    assert [task.name for task in model.tasks] == ["sums"]
    shown, _ = converse(model, [])
    assert "gone.py" in shown and "cannot be checked" in shown


def test_a_missing_run_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match="Give a run"):
        chat_module.chat(tmp_path / "nowhere")


def test_every_line_of_a_pasted_block_is_asked(model):
    """A terminal hands over a pasted block as one input, its lines in it."""
    shown, conversation = converse(model, ["What is 3 + 4?\nWhat is 5 + 6?", "/think off\n\nWhat is 1 + 1?\n"])
    assert [reply.gold for reply in conversation.replies] == ["7", "11", "2"]
    assert "It will answer at once." in shown and conversation.replies[2].thought is None
    assert len(converse(model, ["What is 3 + 4?\n/quit\nWhat is 5 + 6?", "never"])[1].replies) == 1


def test_a_pasted_block_is_one_message_to_a_model_that_converses(model, monkeypatch):
    monkeypatch.setattr(Model, "converses", True)
    conversation = Chat(model, Console(file=io.StringIO()))
    assert conversation.messages("Dear model,\n  look:\n\n  x = 1") == ["Dear model,\n  look:\n\n  x = 1"]
    assert conversation.messages("/think on\nWhat is 1 + 1?") == ["/think on", "What is 1 + 1?"]
    assert conversation.messages("") == []
