"""Chat with a model in the terminal (`hadal chat`) and one question at a time (`hadal ask`).

The thought is shown dimmed while it streams and then folded to one line. Where a question is one of the tasks
the model was trained on, its answer is checked. A model of another origin has the conversation before it; one that was
grown by hadal is asked every question on its own: it was never shown a conversation. What a model writes is stripped of
control characters before it is printed.

Read `Chat.turn` first. The parts without a terminal come before it: `parse_command`, `transcript`.
"""

import json as jsonlib
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text

from hadal.cost.flops import parameters
from hadal.errors import UserError
from hadal.files import write_text
from hadal.terminal.clean import clean, one_line
from hadal.terminal.interrupts import held
from hadal.terminal.model import Kind, Model, Reply
from hadal.terminal.view import count

if TYPE_CHECKING:  # torch is loaded when a model is
    from hadal.engine import EngineConfig

_THOUGHT_ROWS = 8  # of the thought while it streams
_FRAME = 1 / 12  # seconds between frames while it streams
_REMINDER = "It was grown on its tasks alone and knows nothing else: /examples shows what it can do."

HELP = """\
/think on|off|auto  make it think, make it answer at once, or let it choose
/thought            show the last thought in full
/examples           questions of its tasks (type a number to ask one)
/new                forget this conversation
/save FILE          write the conversation as Markdown
/help               this
/quit               leave (so does Ctrl-D; Ctrl-C stops an answer)"""


# ------------------------------------------------------------------------------------- without a terminal


@dataclass(frozen=True)
class Command:
    name: str
    argument: str = ""


def parse_command(line: str) -> Command | None:
    """`/save notes.md` as a command; None for a question. Two slashes ask what begins with one."""
    line = line.strip()
    if not line.startswith("/") or line.startswith("//"):
        return None
    name, _, argument = line[1:].partition(" ")
    return Command(name.lower(), argument.strip())


def fold(reply: Reply) -> str:
    """The thought as one line: `thought for 0.4 s, 31 tokens`."""
    plural = "" if reply.thought_tokens == 1 else "s"
    cut = " (stopped)" if reply.stopped and not reply.answer else ""
    return f"thought for {reply.thought_seconds:.1f} s, {reply.thought_tokens} token{plural}{cut}"


def transcript(name: str, replies: list[Reply]) -> str:
    """The conversation as Markdown. What the model wrote stands in fences that it cannot close."""
    parts = [f"# A conversation with {one_line(name)}"]
    for reply in replies:
        parts.append("## " + re.sub(r"([\\`*_\[\]<>#|~])", r"\\\1", one_line(reply.question)))
        if reply.thought is not None:
            parts += [f"Thought, {reply.thought_tokens} tokens:", _fence(reply.thought)]
        parts += ["Answer:", _fence(reply.answer)]
        if reply.right is not None:
            parts.append("Right." if reply.right else "Wrong; the right answer:")
            if not reply.right:
                parts.append(_fence(reply.gold or ""))
    return "\n\n".join(parts) + "\n"


def _fence(text: str) -> str:
    text = clean(text).strip()
    marks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{marks}text\n{text}\n{marks}"


def save(path: Path, name: str, replies: list[Reply]) -> None:
    """Writes the conversation to a file that is not there yet.

    Raises UserError where the file exists, the name is empty or a folder, or the disk refuses.
    """
    if path.exists():
        raise UserError(f"{path} exists already.", "Choose another name; nothing is overwritten.")
    write_text(path, transcript(name, replies))


# ------------------------------------------------------------------------------------- in the terminal


class Chat:
    """The conversation: reads lines, asks, shows."""

    def __init__(self, model: Model, console: Console) -> None:
        self.model = model
        self.console = console
        self.thinking: bool | None = None
        self.replies: list[Reply] = []
        self.examples = model.examples()

    def greet(self) -> None:
        model, say = self.model, self.console.print
        size = count(parameters(model.llm.model.config).total)
        if not model.is_grown:
            say(Text.assemble((one_line(model.name), "bold cyan"), f", {size} parameters."))
            alone = "Each question is asked on its own."
            words = "It has the conversation before it; /new begins another." if model.converses else alone
            say(Text(f"{words} /help for the rest.", style="dim"))
            for note in model.notes:
                say(Text(clean(note), style="dim"))
            return
        say(Text.assemble((one_line(model.name), "bold cyan"), f", {size} parameters, grown from nothing."))
        say("It is tiny. It knows nothing about the world and cannot chat; it can do what it was grown for:")
        for task in model.tasks:
            say(Text.assemble("  ", (one_line(task.name), "bold"), f"  {one_line(task.about)}"))
        self.show_examples()
        say(Text("/help for the rest. To go on:", style="dim"))
        for command, words in (
            ("hadal quickstart --minutes 60", "a bigger model, harder problems"),
            ("hadal quickstart --task ./mine.py", "your own task, in about 30 lines"),
        ):
            say(Text.assemble("  ", (command, "cyan"), ("  " + words, "dim")))
        for note in model.notes:
            say(Text(clean(note), style="yellow"))

    def show_examples(self) -> None:
        if self.examples:
            self.console.print("Try one, by its number or in your own words:")
        for index, question in enumerate(self.examples, 1):
            self.console.print(Text.assemble((f"  {index} ", "cyan"), clean(question)))

    def loop(self, read: Callable[[], str]) -> None:
        """Until `/quit`, the end of the input, or Ctrl-C at the prompt."""
        while True:
            try:
                text = read().strip()
            except (EOFError, KeyboardInterrupt):
                self.console.print()
                return
            if not all(self.take(message) for message in self.messages(text)):
                return

    def messages(self, text: str) -> list[str]:
        """What stands in one input: a pasted block is one message, but of lines where the first is a command, or where
        the model takes questions alone."""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if len(lines) > 1 and self.model.converses and parse_command(lines[0]) is None:
            return [text]
        return lines

    def take(self, line: str) -> bool:
        """Obey or answer a line; False where the user leaves."""
        command = parse_command(line)
        if command is not None:
            if command.name in ("quit", "exit", "q"):
                return False
            self.obey(command)
            return True
        line = line.removeprefix("/") if line.startswith("//") else line
        if line.isdecimal() and len(line) < 3 and 1 <= int(line) <= len(self.examples):
            line = self.examples[int(line) - 1]
            self.console.print(Text(clean(line), style="bold"))
        try:
            self.turn(line)
        except UserError as error:
            self.console.print(Text(clean(str(error))))
        except KeyboardInterrupt:  # the second in a row: the first has stopped the answer
            return False
        return True

    def obey(self, command: Command) -> None:
        say = self.console.print
        if command.name == "think":
            modes: dict[str, bool | None] = {"on": True, "off": False, "auto": None}
            if command.argument not in modes:
                say("Say /think on, /think off or /think auto.")
                return
            self.thinking = modes[command.argument]
            words = {True: "It will think first.", False: "It will answer at once.", None: "It chooses."}
            say(words[self.thinking])
        elif command.name == "thought":
            thoughts = [reply.thought for reply in self.replies if reply.thought]
            say(Text(clean(thoughts[-1]).strip(), style="dim") if thoughts else "There is no thought yet.")
        elif command.name == "new":
            self.replies.clear()
            say("Started over." + ("" if self.model.converses else " (Each question is asked on its own anyway.)"))
        elif command.name == "save":
            self.save(command.argument)
        elif command.name == "examples":
            self.show_examples()
        elif command.name == "help":
            say(Text(HELP))
        else:
            say(Text(f"There is no /{one_line(command.name, 20)}. /help lists what there is."))

    def save(self, argument: str) -> None:
        if not argument or not self.replies:
            self.console.print("Say /save FILE." if not argument else "There is nothing to save yet.")
            return
        path = Path(argument).expanduser()
        try:
            save(path, self.model.name, self.replies)
        except UserError as error:
            self.console.print(Text(clean(str(error))))
        else:
            self.console.print(Text(f"Saved to {path}."))

    def turn(self, question: str) -> None:
        """One question: the thought streams in a small window and folds, the answer streams below it."""
        console = self.console
        window = _Thought(console)
        written = False

        def show(kind: Kind, text: str, reply: Reply) -> None:
            nonlocal written
            if kind == "thought":
                window.add(text)
                return
            window.close(reply)
            if not written:
                text = text.lstrip()
            written = written or bool(text)
            console.print(Text(text), end="")

        try:
            reply = self.model.reply(question, self.thinking, show, self.replies)
            window.close(reply)
        finally:
            window.close(None)
        self.replies.append(reply)
        if not written:
            console.print(Text("(stopped)" if reply.stopped else "(no answer)", style="dim"), end="")
        speed = f"{reply.tokens} tokens, {count(reply.tokens / max(reply.seconds, 1e-9))} tok/s"
        if reply.cut:
            speed += ", cut off there"
        if reply.drafted:
            speed += f", {reply.accepted} of {reply.drafted} guessed right"
        console.print()
        console.print(Text.assemble(*_verdict(reply), (speed, "dim")))
        if reply.forgotten:
            turns = f"{reply.forgotten} earlier turn{'s' * (reply.forgotten > 1)}"
            console.print(Text(f"The context is full: {turns} did not fit.", style="dim"))
        if reply.right is None and not reply.stopped and self.model.tasks and self.model.is_grown:
            console.print(
                Text("That is not one of its tasks, so nothing vouches for the answer. " + _REMINDER, style="dim")
            )


def _verdict(reply: Reply) -> list[tuple[str, str]]:
    if reply.right is None:
        return []
    if reply.right:
        return [("✓ right", "green"), ("  ", "")]
    return [("✗ wrong", "red"), (f", it is {one_line(reply.gold or '', 200)}  ", "")]


class _Thought:
    """The last rows of a thought while it streams; one line once it ends. On a pipe, the one line alone."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.text = ""
        self.begun = False
        self.closed = False
        self.live: Live | None = None
        self.next = 0.0

    def add(self, text: str) -> None:
        self.begun = True
        self.text += text
        if not self.closed and self.console.is_terminal:
            with held():
                self._draw()

    def _draw(self) -> None:
        if self.live is None:
            self.live = Live(console=self.console, auto_refresh=False, transient=True)
            self.live.start()
            self.console.show_cursor(True)
        now = time.monotonic()
        if now >= self.next:
            self.next = now + _FRAME
            rows = Text(self.text.strip(), style="dim").wrap(self.console, self.console.width)
            most = max(1, min(_THOUGHT_ROWS, self.console.height - 3))
            self.live.update(Text("\n").join(rows[-most:]), refresh=True)

    def close(self, reply: Reply | None) -> None:
        if self.closed:
            return
        with held():
            self.closed = True
            if self.live is not None:
                self.live.update(Text(""))
                self.live.stop()
            if self.begun and reply is not None:
                self.console.print(Text.assemble(("▸ ", "cyan"), (fold(reply), "dim")))


def chat(
    run: str | Path, dtype: str = "auto", budget: int | None = None, config: "EngineConfig | None" = None
) -> None:
    """Opens the run, checkpoint or adapters and talks until the user leaves.

    dtype: how weights are held, and config, as in `LLM.load`; budget: tokens that a thought may have.
    Raises UserError, naming the remedy, where the run is missing, unfinished, damaged or of another version.
    """
    console = Console(highlight=False)
    model = Model(run, dtype, budget, config)
    conversation = Chat(model, console)
    conversation.greet()
    conversation.loop(_reader(console))


def _reader(console: Console) -> Callable[[], str]:
    """Reads lines: with history and a prompt on a terminal, plainly from a pipe."""
    if not sys.stdin.isatty():
        return _read_plainly
    try:
        import readline  # noqa: F401  (input() gains history and editing by it)
    except ImportError:
        return lambda: input("\n> ")
    mark = "\x01\x1b[1;36m\x02> \x01\x1b[0m\x02" if console.color_system and not console.no_color else "> "
    return lambda: input("\n" + mark)


def _read_plainly() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def ask(
    run: str | Path, question: str, thinking: bool | None = None, json: bool = False, dtype: str = "auto",
    budget: int | None = None, config: "EngineConfig | None" = None,
) -> None:  # fmt: skip
    """Asks one question and prints the answer, or one JSON object; dtype, budget and config as for `chat`.

    Raises UserError, naming the remedy, for a run that cannot be opened or an empty question.
    """
    question = question.strip()
    if not question:
        raise UserError("the question is empty.", 'Ask one, such as "How many r in strawberry?"')
    model = Model(run, dtype, budget, config)
    if json:
        reply = model.reply(question, thinking, lambda kind, text, reply: None)
        print(jsonlib.dumps(reply.as_dict()))
    else:
        conversation = Chat(model, Console(highlight=False))
        conversation.thinking = thinking
        conversation.turn(question)
