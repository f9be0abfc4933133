"""The page in a real browser, over the real server: a grown model on one side, a scripted upstream on the other.

Needs Chromium (`apt install chromium`) and `pip install playwright`. HADAL_RUN names a run to talk to instead of
growing one; HADAL_SCREENSHOTS a folder for pictures of the main states (docs/images).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_upstream import ScriptedUpstream, words

sync_api = pytest.importorskip("playwright.sync_api")
from playwright.sync_api import Browser, Page, expect  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.long, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]

ROOT = Path(__file__).parent.parent
AXE = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"
WAIT = 30_000  # ms; this machine may be busy
expect.set_options(timeout=WAIT)

THOUGHT = """\
The question is what $\\int_0^1 x^2\\,dx$ is.

I recall that \\(\\frac{d}{dx} x^3 = 3x^2\\), so $x^3/3$ is an antiderivative.

Wait, I should check the bounds. At 1 it is $1/3$, at 0 it is 0. So the area under the parabola is a third of the \
square, which also fits what Archimedes found by weighing.

A quick check with ten slices from the left gives 0.285, and from the right 0.385; a third lies between them, and the \
mean of both is 0.335.

"""
MARKDOWN = """\
The integral is **one third**. It costs $5 to ask and between $10 and $20 to be sure.

### Why

By the fundamental theorem of calculus,

$$\\int_0^1 x^2\\,dx = \\left[\\frac{x^3}{3}\\right]_0^1 = \\frac{1}{3}.$$

A second way, where \\(e^{i\\pi} + 1 = 0\\) does not help but $\\sqrt{2} \\approx 1.414$ is near `print(x)`:

| Method | Value | Error |
|:--|--:|--:|
| Riemann, n = 10 | 0.385 | 0.052 |
| Simpson, n = 2 | 0.333 | 0 |

```python
def riemann(f, n: int) -> float:
    \"\"\"The left sum of f on [0, 1].\"\"\"
    return sum(f(i / n) for i in range(n)) / n   # n slices
```

> A thought is a descent, and an answer is what one brings back up.

See [the theorem](https://example.org/theorem).
"""

# What has run in other chats, and what is tried everywhere. `boom` must never be called.
XSS = [
    "<script>boom()</script>",
    "<img src=x onerror=boom()>",
    "<svg onload=boom()>",
    "<svg><script>boom()</script></svg>",
    "<iframe srcdoc='<script>parent.boom()</script>'></iframe>",
    "<iframe src=javascript:parent.boom()></iframe>",
    "<a href='javascript:boom()'>press</a>",
    "[press](javascript:boom())",
    "[press](JaVaScRiPt:boom())",
    "[press](java&#115;cript:boom())",
    "[press](&#x6A;avascript:boom())",
    "[press](data:text/html,<script>boom()</script>)",
    "[press](vbscript:boom())",
    "[press](<javascript:boom()>)",
    "[a]: javascript:boom()\n\n[press][a]",
    "![x](javascript:boom())",
    "![x](x\"onerror=\"boom())",
    "![\" onerror=boom() x=\"](x)",
    "<details open ontoggle=boom()>x</details>",
    "<math><mtext></mtext><mglyph><style><!--</style><img src=x onerror=boom()>",
    "<form><math><mtext></form><form><mglyph><style></math><img src onerror=boom()>",
    "<noscript><p title=\"</noscript><img src=x onerror=boom()>\">",
    "<template><img src=x onerror=boom()></template>",
    "<input autofocus onfocus=boom()>",
    "<body onload=boom()>",
    "<style>@import 'javascript:boom()';</style><div style='background:url(javascript:boom())'>x</div>",
    "<object data=javascript:boom()></object><embed src=javascript:boom()>",
    "<base href=javascript:boom()//><a href=x>press</a>",
    "<meta http-equiv=refresh content='0;url=javascript:boom()'>",
    "<b onmouseover=boom() style=position:fixed;inset:0>x</b>",
    "```html\n<script>boom()</script>\n```",
    "```\"><img/src=x/onerror=boom()>\nx\n```",
    "`<img src=x onerror=boom()>`",
    "$\\href{javascript:boom()}{press}$",
    "$$\\htmlData{x=1}{\\url{javascript:boom()}}$$",
    "$\\includegraphics{javascript:boom()}$",
    "$\\htmlClass{x\" onmouseover=boom()}{y}$",
    "$<img src=x onerror=boom()>$",
    "| a |\n|--|\n| <img src=x onerror=boom()> |",
    "<span class=formula>0</span><img src=x onerror=boom()>",
    "<!--><img src=x onerror=boom()>-->",
    "<![CDATA[><img src=x onerror=boom()>]]>",
    "&lt;img src=x onerror=boom()&gt;",
    "<https://x/\"onclick=\"boom()>",
    "<javascript:boom()>",
    "\"><script>boom()</script>",
    "{{constructor.constructor('boom()')()}} ${boom()}",
]


class Scripts:
    """The upstream's scripts; `hold` keeps those back that say so, so that a test can look at a moment."""

    def __init__(self) -> None:
        self.hold = threading.Event()
        self.turn = 0

    def table(self) -> dict[str, object]:
        return {
            "": self.short, "demo": self.demo, "held thought": self.held_thought, "held answer": self.held_answer,
            "endless": self.endless, "another": self.another, "empty thought": self.empty_thought,
            "no answer": self.silent, "corpus": self.corpus, "chain": self.chain, "refuse": self.short,
            "whole": self.whole,
        }  # fmt: skip

    def short(self) -> Iterator:
        yield from words("reasoning_content", "A short thought.")
        yield from words("content", "A short answer.")

    def another(self) -> Iterator:
        self.turn += 1
        yield "content", f"Answer number {self.turn}."

    def whole(self) -> Iterator:
        yield "reasoning_content", THOUGHT
        yield "content", MARKDOWN

    def demo(self) -> Iterator:
        yield from words("reasoning_content", THOUGHT, 0.01)
        yield from words("content", MARKDOWN, 0.002)

    def held_thought(self) -> Iterator:
        yield from words("reasoning_content", THOUGHT, 0.005)
        self.hold.wait(60)
        yield from words("reasoning_content", "Now it goes on.")
        yield from words("content", "The end of it.")

    def held_answer(self) -> Iterator:
        yield from words("reasoning_content", "A thought before.", 0.05)
        yield from words("content", "The first half ", 0.01)
        self.hold.wait(60)
        yield from words("content", "and the second half.", 0.01)

    def endless(self) -> Iterator:
        for i in range(20_000):
            yield "reasoning_content", f"step {i}, "
            yield 0.02

    def empty_thought(self) -> Iterator:
        yield "reasoning_content", "\n\n"
        yield "content", "Without a thought."

    def silent(self) -> Iterator:
        yield "reasoning_content", "I shall say nothing."

    def corpus(self) -> Iterator:
        for i, text in enumerate(XSS):
            yield "reasoning_content", f"{text}\n\nThought {i}.\n\n"
        for i, text in enumerate(XSS):
            yield "content", f"{text}\n\nAnswer {i}.\n\n"

    def chain(self) -> Iterator:
        for i in range(2500):  # about 50,000 tokens of four letters, faster than any model here
            step = f"Step {i}: we have $a_{{{i}}} = {i}^2$, so the sum up to here is {i * i}; let me go on"
            yield "reasoning_content", f"{step} a little further.\n\n"
            if i % 10 == 9:
                yield 0.02
        yield "content", "Done."


@pytest.fixture(scope="module")
def scripts() -> Scripts:
    return Scripts()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if given := os.environ.get("HADAL_RUN"):
        return Path(given)
    folder = tmp_path_factory.mktemp("run") / "grown"
    command = [sys.executable, "-m", "hadal", "quickstart", "--minutes", "2", "--no-chat", "--out", str(folder)]
    subprocess.run(command, check=True, timeout=900)
    return folder


def serve(*options: str) -> Iterator[str]:
    """`hadal serve` with these options, and its address; ends it afterwards."""
    command = [sys.executable, "-m", "hadal", "serve", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    found = None
    for line in process.stderr:
        if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
            break
    assert found is not None, "hadal serve did not start"
    threading.Thread(target=process.stderr.read, daemon=True).start()  # so that the pipe never fills
    try:
        yield found[0].rstrip("/")
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@pytest.fixture(scope="module")
def upstream(scripts: Scripts) -> Iterator[str]:
    upstream = ScriptedUpstream(scripts.table(), ("r1-scripted", "v3-scripted"))  # type: ignore[arg-type]
    yield f"sea={upstream.url}"
    upstream.close()


@pytest.fixture(scope="module")
def address(run_folder: Path, upstream: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    db = tmp_path_factory.mktemp("db") / "history.db"
    yield from serve(str(run_folder), "--upstream", upstream, "--db", str(db))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Tab:
    """One page, with what went wrong in it."""

    def __init__(self, browser: Browser, address: str, **options: object) -> None:
        settings = {"viewport": {"width": 1280, "height": 860}, "locale": "en-GB", "color_scheme": "dark"} | options
        self.address = address
        self.context = browser.new_context(**settings)  # type: ignore[arg-type]
        self.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.asked: list[str] = []
        self.watch(self.page)

    def watch(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", lambda line: self.wrong.append(line.text) if line.type == "error" else None)
        page.on("request", lambda asked: self.asked.append(asked.url))

    def close(self) -> None:
        self.context.close()
        assert self.wrong == []
        assert [url for url in self.asked if not url.startswith(self.address)] == [], "another host was asked"

    def open(self, path: str = "/") -> Page:
        self.page.goto(self.address + path)
        self.page.wait_for_selector("#composer, .duel", timeout=WAIT)
        return self.page

    def choose(self, model: str) -> None:
        self.page.click("#model")
        self.page.get_by_role("option").filter(has_text=re.compile(re.escape(model) + r"(?!:)")).first.click()

    def ask(self, text: str) -> None:
        """Asks and waits until the answer has begun."""
        before = self.page.locator(".answer").count()
        self.page.fill("#composer", text)
        self.page.press("#composer", "Enter")
        expect(self.page.locator(".answer")).to_have_count(before + 1)

    def finished(self) -> None:
        """Waits until the last answer is whole."""
        self.page.wait_for_selector(".answer >> nth=-1", timeout=WAIT)
        expect(self.page.locator(".answer").last).to_have_attribute("aria-busy", "false")
        expect(self.page.locator(".phase")).to_have_count(0)

    def fresh(self, model: str = "r1-scripted") -> Page:
        page = self.open()
        self.choose(model)
        return page


@pytest.fixture
def tab(browser: Browser, address: str, scripts: Scripts) -> Iterator[Tab]:
    scripts.hold.clear()
    tab = Tab(browser, address)
    yield tab
    scripts.hold.set()
    tab.close()


def stored(page: Page) -> dict:
    """The open chat as the server has it."""
    return page.evaluate("fetch('/api/chats/' + location.pathname.split('/')[2]).then(r => r.json())")


def picture(page: Page, name: str) -> None:
    if folder := os.environ.get("HADAL_SCREENSHOTS"):
        page.wait_for_timeout(300)
        page.screenshot(path=str(Path(folder) / f"page-{name}.png"))


def check_axe(page: Page, state: str) -> None:
    if not AXE.is_file():
        pytest.skip("axe-core is not there: npm ci in web/")
    if not page.evaluate("typeof axe !== 'undefined'"):
        page.evaluate(AXE.read_text())  # in the page by the debugger's hand, which the policy does not bind
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    bad = [
        (rule["id"], [node["html"][:120] + " " + node["failureSummary"][:200] for node in rule["nodes"]][:4])
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
    ]
    assert bad == [], f"{state}: {json.dumps(bad, indent=1)}"


def test_thought_streams_open_folds_at_the_first_word_and_keeps_its_time(tab: Tab, scripts: Scripts) -> None:
    page = tab.fresh()
    picture(page, "welcome")
    page.evaluate(
        """() => { const region = document.querySelector('[role=status][aria-live]'); window.said = [];
        const all = { childList: true, characterData: true, subtree: true };
        new MutationObserver(() => window.said.push(region.textContent)).observe(region, all) }"""
    )
    tab.ask("A held thought, please: what is the area under x² from 0 to 1?")
    thought = page.locator(".thought")
    expect(thought).to_have_attribute("data-live", "true")
    expect(thought).to_have_attribute("data-open", "true")
    expect(page.locator(".thought-text")).to_contain_text("Archimedes")
    expect(page.locator(".phase-name")).to_have_text("Thinking")
    expect(page.locator(".phase-numbers")).to_contain_text("tokens/s")
    expect(page.locator(".thought .katex").first).to_be_visible()
    picture(page, "thinking")
    check_axe(page, "thinking")
    scripts.hold.set()
    tab.finished()
    expect(thought).to_have_attribute("data-open", "false")
    title = page.locator(".thought-title").inner_text()
    assert re.fullmatch(r"Thought for \d+(\.\d)? s", title)
    assert "The end of it." in page.locator(".answer").inner_text()
    assert re.search(r"\d+ tokens · \d+(\.\d)? tokens/s", page.locator(".answer .meta").inner_text())
    expect(page.locator(".totals")).to_contain_text("tokens")
    said = [text for text in page.evaluate("window.said") if text]
    assert [text.split(".")[0] for text in said] == ["Thinking", "Answering", "Answer ready"], "each state once"
    page.reload()
    expect(page.locator(".thought-title")).to_have_text(title)
    page.click(".thought-head")
    expect(page.locator(".thought-text")).to_contain_text("Now it goes on.")
    page.get_by_role("button", name="Fold the thought").click()
    expect(page.locator(".thought")).to_have_attribute("data-open", "false")


def test_thoughts_stay_open_where_that_is_preferred_and_empty_ones_are_hidden(tab: Tab) -> None:
    page = tab.fresh()
    page.get_by_role("button", name="Preferences").click()
    page.get_by_label("Keep thoughts open").check()
    picture(page, "preferences")
    check_axe(page, "preferences")
    page.keyboard.press("Escape")
    tab.ask("short")
    tab.finished()
    expect(page.locator(".thought")).to_have_attribute("data-open", "true")
    page.get_by_role("button", name="Preferences").click()
    page.get_by_label("Keep thoughts open").uncheck()
    page.keyboard.press("Escape")
    tab.ask("empty thought")
    tab.finished()
    expect(page.locator(".answer").last.locator(".thought")).to_have_count(0)
    tab.ask("no answer")
    tab.finished()
    expect(page.locator(".answer").last).to_contain_text("ended without an answer")


def test_markdown_formulas_prices_and_code(tab: Tab) -> None:
    page = tab.fresh()
    tab.ask("The whole answer at once, please.")
    tab.finished()
    answer = page.locator(".answer > .markdown")
    expect(answer.locator(".katex")).to_have_count(3)
    expect(answer).to_contain_text("It costs $5 to ask and between $10 and $20 to be sure.")
    expect(answer.locator("table td").nth(1)).to_have_css("text-align", "right")
    expect(answer.locator(".hljs-keyword").first).to_have_text("def")
    expect(answer.locator("a")).to_have_attribute("rel", "noopener noreferrer nofollow")
    height = page.evaluate("document.querySelector('.katex .vlist').getBoundingClientRect().height")
    assert height > 5, "the policy kept KaTeX's styles out"
    answer.get_by_role("button", name="Copy").click()
    assert page.evaluate("navigator.clipboard.readText()").startswith("def riemann")
    page.get_by_role("button", name="Copy the answer").click()
    assert page.evaluate("navigator.clipboard.readText()").strip() == MARKDOWN.strip()
    page.click(".answer .meta")
    expect(page.locator(".details")).to_contain_text("Thought tokens")
    picture(page, "answer")
    check_axe(page, "answer")
    page.emulate_media(color_scheme="light")
    picture(page, "answer-light")
    check_axe(page, "answer, light")


def test_stop_keeps_what_came(tab: Tab) -> None:
    page = tab.fresh()
    tab.ask("endless")
    expect(page.locator(".thought-text")).to_contain_text("step 10,")
    page.get_by_role("button", name="Stop").click()
    tab.finished()
    expect(page.locator(".outcome")).to_contain_text("You stopped this answer")
    last = stored(page)["messages"][-1]
    assert last["status"] == "stopped" and "step 10," in last["thought"]
    tab.ask("endless again")
    expect(page.locator(".thought-text")).to_contain_text("step 3,")
    page.keyboard.press("Escape")
    tab.finished()


def test_answer_now_cuts_the_thought_of_a_grown_model(tab: Tab) -> None:
    page = tab.open()
    card = page.evaluate("fetch('/api/models').then(r => r.json())")["models"][0]
    assert card["answer_now"]
    page.get_by_role("radio", name="Think", exact=True).check()
    page.get_by_role("button", name="Settings of this chat").click()
    page.get_by_label("Temperature").fill("2")  # so that it rambles: its usual thought is over in a twentieth second
    page.get_by_label("Temperature").blur()
    page.keyboard.press("Escape")
    # A hand inside the page presses the button in the moment that it may be pressed: one outside would be late.
    page.evaluate(
        """() => new MutationObserver(() => {
            const button = document.querySelector('.phase button:not([disabled])')
            if (button?.textContent.includes('Answer now')) button.click()
        }).observe(document.body, { childList: true, subtree: true, attributes: true })"""
    )
    for _ in range(8):  # some thoughts end at once nevertheless
        tab.ask("Use + and - on 19, 10, 6, 2, 1, 33, 47, 58 to get 38.")
        tab.finished()
        if "cut short" in page.locator(".answer").last.inner_text():
            break
    else:
        pytest.fail("no thought was cut short")


def test_an_answer_cut_by_its_length_goes_on(tab: Tab) -> None:
    page = tab.open()
    page.get_by_role("radio", name="Think", exact=True).check()
    page.get_by_role("button", name="Settings of this chat").click()
    page.get_by_label("Longest answer").fill("2")  # so short that more is to come, however few words the model makes
    page.get_by_label("Longest answer").blur()
    page.keyboard.press("Escape")
    tab.ask("15 - 5 - 9 + 2 - 1 + 11 - 6 = ?")
    tab.finished()
    expect(page.locator(".outcome")).to_contain_text("length limit")
    before = stored(page)["messages"][-1]
    page.get_by_role("button", name="Continue").click()
    began = time.monotonic()
    while (after := stored(page)["messages"][-1])["total_ms"] == before["total_ms"] or after["status"] == "running":
        assert time.monotonic() - began < 30
        page.wait_for_timeout(100)
    assert after["id"] == before["id"] and after["thought"].startswith(before["thought"])
    assert len(after["thought"] + after["content"]) > len(before["thought"] + before["content"])
    expect(page.locator(".answer .meta")).to_contain_text(f"{after['usage']['completion_tokens']} tokens")


def test_grown_model_first_message_to_streamed_answer(tab: Tab) -> None:
    page = tab.open()
    expect(page.locator(".welcome")).to_contain_text("grown from nothing")
    page.locator(".examples button").first.click()
    expect(page.locator(".answer")).to_have_count(1)
    tab.finished()
    expect(page).to_have_url(re.compile("/c/"))
    meta = page.locator(".answer .meta").inner_text()
    found = re.fullmatch(r"(\d+) tokens( · \d+(?:\.\d+)? tokens/s)? · <?\$[\d.]+", meta)
    assert found and (found[2] or int(found[1]) < 8), meta  # a few tokens may come in one piece, which has no speed
    expect(page.locator(".history .row").first).to_contain_text("?")
    expect(page.locator(".dock-note")).to_contain_text("answers each question on its own")


def test_budget_and_switch_reach_the_model(tab: Tab) -> None:
    page = tab.open()
    page.get_by_role("radio", name="Direct", exact=True).check()
    tab.ask("15 - 5 - 9 + 2 - 1 + 11 - 6 = ?")
    tab.finished()
    expect(page.locator(".thought")).to_have_count(0)
    page.get_by_role("radio", name="Think", exact=True).check()
    page.get_by_label("Budget").fill("3")
    page.get_by_label("Budget").blur()
    tab.ask("15 - 5 - 9 + 2 - 1 + 11 - 6 = ?")
    tab.finished()
    expect(page.locator(".thought-title").last).to_contain_text("cut short")
    chat = stored(page)
    assert chat["messages"][-1]["settings"]["budget"] == 3
    assert chat["messages"][-1]["usage"]["reasoning_tokens"] <= 8


def test_regenerate_edit_and_branches(tab: Tab) -> None:
    page = tab.fresh()
    tab.ask("another")
    tab.finished()
    first = page.locator(".answer").inner_text()
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".branches")).to_contain_text("2/2")
    tab.finished()
    assert page.locator(".answer").inner_text() != first
    page.get_by_role("button", name="Previous branch").click()
    expect(page.locator(".branches")).to_contain_text("1/2")
    tab.ask("short")
    tab.finished()
    expect(page.locator(".answer")).to_have_count(2)
    page.locator(".question").first.hover()
    page.locator(".question").first.get_by_role("button", name="Edit and ask again").click()
    page.locator(".editing textarea").fill("another, please")
    page.locator(".editing textarea").press("Enter")
    expect(page.locator(".question .branches")).to_contain_text("2/2")
    tab.finished()
    expect(page.locator(".answer")).to_have_count(1)
    picture(page, "branches")
    page.locator("h1").first.evaluate("node => document.activeElement.blur()")
    page.keyboard.press("[")
    expect(page.locator(".question .branches")).to_contain_text("1/2")
    page.reload()
    expect(page.locator(".question .branches")).to_contain_text("1/2")  # where one looked is kept


def test_reload_and_a_second_tab_in_mid_stream(tab: Tab, scripts: Scripts) -> None:
    page = tab.fresh()
    tab.ask("held answer")
    expect(page.locator(".answer")).to_contain_text("The first half")
    page.reload()
    expect(page.locator(".answer")).to_contain_text("The first half")
    expect(page.locator(".phase-name")).to_have_text("Answering")
    other = tab.context.new_page()
    tab.watch(other)
    other.goto(page.url)
    expect(other.locator(".answer")).to_contain_text("The first half")
    scripts.hold.set()
    for one in (page, other):
        expect(one.locator(".answer")).to_contain_text("The first half and the second half.")
        expect(one.locator(".phase")).to_have_count(0)
    assert page.locator(".answer").inner_text().count("first half") == 1


def test_search_rename_and_delete(tab: Tab) -> None:
    page = tab.fresh()
    tab.ask("short: where do zebrafish sleep?")
    tab.finished()
    expect(page.locator(".history h2").first).to_have_text("Today")
    page.keyboard.press("Control+k")
    page.keyboard.type("zebraf")
    expect(page.locator(".history .row")).to_have_count(1)
    expect(page.locator(".row-snippet mark")).to_have_text(re.compile("zebraf", re.I))
    page.locator(".history .row a").click()
    expect(page.locator(".question", has_text="zebrafish")).to_be_focused()
    page.fill("#search", "nothing has this")
    expect(page.locator(".history-empty")).to_be_visible()
    page.fill("#search", "")
    row = page.locator(".history .row").first
    row.hover()
    row.get_by_role("button", name=re.compile("More for")).click()
    page.get_by_role("menuitem", name="Rename").click()
    page.locator(".rename").fill("Sleeping fish")
    page.locator(".rename").press("Enter")
    expect(page.locator(".history .row").first).to_contain_text("Sleeping fish")
    expect(page).to_have_title(re.compile("Sleeping fish"))
    row = page.locator(".history .row").first
    row.hover()
    row.get_by_role("button", name=re.compile("More for")).click()
    page.get_by_role("menuitem", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator(".history")).not_to_contain_text("Sleeping fish")
    expect(page).to_have_url(tab.address + "/")


def test_export_and_import(tab: Tab, tmp_path: Path) -> None:
    page = tab.fresh()
    tab.ask("whole: export me")
    tab.finished()
    files = {}
    for entry in ("Export as JSON", "Export as Markdown", "Export as Markdown, no thoughts"):
        row = page.locator(".history .row").first
        row.hover()
        row.get_by_role("button", name=re.compile("More for")).click()
        with page.expect_download() as download:
            page.get_by_role("menuitem", name=entry, exact=True).click()
        path = tmp_path / f"{len(files)}-{download.value.suggested_filename}"
        download.value.save_as(path)
        files[entry] = path
    assert "Archimedes" in files["Export as Markdown"].read_text()
    assert "Archimedes" not in files["Export as Markdown, no thoughts"].read_text()
    for entry in ("Export as JSON", "Export as Markdown"):
        former = page.url
        page.set_input_files("#import", files[entry])
        page.wait_for_url(lambda url, former=former: url != former and "/c/" in url)
        expect(page.locator(".question-text")).to_have_text("whole: export me")
        expect(page.locator(".answer > .markdown")).to_contain_text("one third")
        page.click(".thought-head")
        expect(page.locator(".thought-text")).to_contain_text("Archimedes")
    broken = tmp_path / "broken.json"
    broken.write_text("{not json")
    page.set_input_files("#import", broken)
    expect(page.get_by_role("alert")).not_to_be_empty()
    tab.wrong.clear()  # the browser logs the refused request


def test_side_by_side_with_verdicts_and_score(tab: Tab) -> None:
    page = tab.open("/side-by-side")
    left, right = page.locator("#left .picker-name").inner_text(), page.locator("#right .picker-name").inner_text()
    assert left == f"{right}:base"
    expect(page.locator("#task")).to_be_visible()
    for rounds in range(1, 4):
        page.click("#deal")
        expect(page.locator(".column")).to_have_count(2)
        expect(page.locator(".column .verdict[data-right=true], .column .verdict[data-right=false]")).to_have_count(2)
        expect(page.locator(".round > .hint")).to_contain_text("right is")
        expect(page.locator(".score-line")).to_contain_text(f"{rounds} rounds")
    picture(page, "side-by-side")
    check_axe(page, "side by side")
    slider = page.locator("#difficulty")
    slider.focus()
    slider.press("End")
    expect(page.locator(".deal .hint")).to_contain_text("no worked thought was ever shown")
    page.click("#deal")
    expect(page.locator(".round > .hint")).to_contain_text(f"difficulty {slider.get_attribute('max')}")
    expect(page.locator(".phase")).to_have_count(0)
    # The user's own problem, which no scorer knows: the user says.
    for side, model in (("left", "r1-scripted"), ("right", "v3-scripted")):
        page.click(f"#{side}")
        page.get_by_role("option").filter(has_text=model).click()
    page.get_by_role("radio", name="My own problem").check()
    page.fill("#composer", "short: which is the deepest sea?")
    page.press("#composer", "Enter")
    expect(page.locator(".column .judge")).to_have_count(2)
    page.locator(".column").first.get_by_role("button", name="Right").click()
    expect(page.locator(".column").first.locator(".verdict")).to_have_attribute("data-right", "true")
    page.fill("#composer", "short: and its depth?")
    page.get_by_label("Right answer").fill("A short answer.")
    page.get_by_role("button", name="Ask both").click()
    expect(page.locator(".round .question-text")).to_contain_text("its depth")
    expect(page.locator(".column .verdict[data-right=true]")).to_have_count(2)
    expect(page.locator(".history .row")).not_to_have_count(0)
    page.reload()
    expect(page.locator(".column")).to_have_count(2)


def test_an_own_problem_is_judged_by_its_own_answer(tab: Tab) -> None:
    page = tab.open("/side-by-side")
    page.get_by_role("radio", name="My own problem").check()
    for question, gold in (("What comes first?", "the egg"), ("And what comes then?", "")):
        page.fill("#composer", question)
        if gold:
            page.get_by_role("textbox", name="Right answer").fill(gold)
        page.get_by_role("button", name="Ask both").click()
        expect(page.locator(".round .question-text")).to_contain_text(question)
        expect(page.locator(".round .answer[aria-busy=false]")).to_have_count(2)
        assert stored(page)["duel"]["gold"] == (gold or None)
        expect(page.get_by_role("textbox", name="Right answer")).to_have_value("")


@pytest.mark.parametrize("size", [20_000, 250_000])
def test_a_message_that_does_not_fit_is_not_lost(tab: Tab, size: int) -> None:
    text = "word " * (size // 5) + "the end"
    page = tab.open()
    chats = page.locator(".history a").count()
    page.fill("#composer", text)
    page.press("#composer", "Enter")
    expect(page.get_by_role("alert")).to_contain_text("at most")
    expect(page.locator("#composer")).to_have_value(text)
    page.reload()
    expect(page.locator("#composer")).to_have_value(text)
    expect(page.locator(".history a")).to_have_count(chats)  # nothing was begun
    tab.ask("How many r in strawberry?")
    tab.finished()
    page.fill("#composer", text)
    page.press("#composer", "Enter")
    expect(page.get_by_role("alert")).to_contain_text("at most")
    expect(page.locator("#composer")).to_have_value(text)
    page.reload()
    expect(page.locator("#composer")).to_have_value(text)
    tab.wrong.clear()  # the browser's own words on the refusals


def test_errors_are_told_with_their_reason(tab: Tab) -> None:
    page = tab.fresh()
    tab.ask("refuse")
    tab.finished()
    expect(page.locator(".outcome.bad")).to_contain_text("this upstream refuses the question")
    tab.context.set_offline(True)
    page.fill("#composer", "typed while the server is away")
    page.press("#composer", "Enter")
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    expect(page.locator("#composer")).to_have_value("typed while the server is away")
    page.get_by_role("link", name="New chat").click()
    expect(page.locator("#composer")).to_have_value("")
    page.go_back()
    expect(page.locator("#composer")).to_have_value("typed while the server is away")
    tab.context.set_offline(False)
    tab.wrong.clear()  # the browser logs the failed request
    page.goto(tab.address + "/c/unknown")
    expect(page.get_by_role("alert")).to_contain_text("unknown")
    tab.wrong.clear()


def test_no_corpus_of_scripts_runs(browser: Browser, address: str, scripts: Scripts, tmp_path: Path) -> None:
    tab = Tab(browser, address)
    page = tab.page
    booms: list[str] = []
    tab.context.expose_function("boom", lambda *_: booms.append("boom"))
    page.on("dialog", lambda dialog: (booms.append("dialog"), dialog.dismiss()))
    tab.fresh()
    tab.ask("corpus")
    tab.finished()
    page.click(".thought-head")
    expect(page.locator(".thought-text")).to_contain_text(f"Thought {len(XSS) - 1}.")
    expect(page.locator(".answer > .markdown")).to_contain_text(f"Answer {len(XSS) - 1}.")

    def press_everything() -> None:
        for link in page.locator(".markdown a").all():
            href = link.get_attribute("href") or ""
            assert href == "" or re.match(r"https?:|mailto:", href), href
        bad = page.evaluate(  # no handler and no address that runs, on any node made from foreign text
            """() => [...document.querySelectorAll('.markdown *, .history *, .question *')].flatMap(node =>
                [...node.attributes].filter(a => /^on/i.test(a.name) || /^\\s*javascript:/i.test(a.value))
                .map(() => node.outerHTML.slice(0, 200)))"""
        )
        assert bad == []
        for made in ("script", "iframe", "object", "embed", "img", "form", "base", "meta", "style", "template"):
            expect(page.locator(f".markdown {made}")).to_have_count(0)

    press_everything()
    # As titles, questions and whole imported chats.
    export = "fetch('/api/chats/' + location.pathname.split('/')[2] + '/export?format=json&thoughts=true')"
    exported = page.evaluate(f"{export}.then(r => r.json())")

    def poison(value: object, text: str) -> object:
        if isinstance(value, dict):
            shown = ("title", "content", "thought", "error")
            return {k: text if k in shown and v else poison(v, text) for k, v in value.items()}
        return [poison(item, text) for item in value] if isinstance(value, list) else value

    for text in XSS:
        file = tmp_path / "hostile.json"
        file.write_text(json.dumps(poison(exported, text)))
        former = page.url
        page.set_input_files("#import", file)
        page.wait_for_url(lambda url, former=former: url != former)
        page.wait_for_selector(".answer .markdown")
    press_everything()
    page.fill("#search", "boom")
    page.wait_for_selector(".row-snippet")
    press_everything()
    page.wait_for_timeout(500)
    assert booms == []
    tab.wrong.clear()  # an import that was refused, say
    tab.close()


def test_a_long_thought_stays_smooth(tab: Tab) -> None:
    page = tab.fresh()
    page.evaluate(
        """() => { window.gaps = []; let last = performance.now();
        const beat = now => { window.gaps.push(now - last); last = now; requestAnimationFrame(beat) };
        requestAnimationFrame(beat) }"""
    )
    began = time.monotonic()
    tab.ask("chain")
    page.wait_for_selector(".answer[aria-busy=false]", timeout=180_000)
    seconds = time.monotonic() - began
    gaps = sorted(page.evaluate("window.gaps"))
    tokens = page.locator(".thought-tokens").inner_text()
    p50, p95, worst = gaps[len(gaps) // 2], gaps[len(gaps) * 95 // 100], gaps[-1]
    letters = len(stored(page)["messages"][-1]["thought"])
    print(f"\n{letters} letters ({tokens}) in {seconds:.1f} s; frames: median {p50:.0f} ms, ", end="")
    print(f"95% {p95:.0f} ms, worst {worst:.0f} ms")
    assert letters > 200_000
    assert p95 < 200, "the page stuttered while the thought came in"
    began = time.monotonic()
    page.click(".thought-head")
    while not page.evaluate("document.querySelector('.thought-text').textContent.includes('Step 2499:')"):
        assert time.monotonic() - began < 60
        page.wait_for_timeout(50)
    print(f"unfolded in {time.monotonic() - began:.1f} s")
    page.wait_for_timeout(200)
    page.evaluate("window.gaps.length = 0")
    page.mouse.move(640, 400)
    for _ in range(30):
        page.mouse.wheel(0, 1500)
        page.wait_for_timeout(30)
    gaps = sorted(page.evaluate("window.gaps"))
    print(f"scrolling: median {gaps[len(gaps) // 2]:.0f} ms, 95% {gaps[len(gaps) * 95 // 100]:.0f} ms")


def test_phone(browser: Browser, address: str, scripts: Scripts) -> None:
    phone = {"viewport": {"width": 390, "height": 780}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}
    tab = Tab(browser, address, **phone)
    page = tab.fresh()
    expect(page.locator("#sidebar")).to_be_hidden()
    picture(page, "phone-welcome")
    tab.ask("whole")
    tab.finished()
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    wide = page.evaluate(
        """() => [...document.querySelectorAll('main *')]
            .filter(n => !n.closest('.table, pre, .display, .hidden, .katex'))
            .filter(n => n.getBoundingClientRect().right > innerWidth + 1).map(n => n.outerHTML.slice(0, 100))"""
    )
    assert wide == []
    picture(page, "phone")
    check_axe(page, "phone")
    page.get_by_role("button", name="Open the sidebar").click()
    expect(page.locator("#sidebar")).to_be_visible()
    picture(page, "phone-sidebar")
    page.get_by_role("link", name="Side by side").click()
    expect(page.locator("#sidebar")).to_be_hidden()
    page.wait_for_selector("#deal")
    page.click("#deal")
    expect(page.locator(".column .verdict")).to_have_count(2)
    picture(page, "phone-side-by-side")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.close()


def test_by_keyboard_alone(tab: Tab) -> None:
    page = tab.open()
    keys = page.keyboard
    keys.press("Escape")  # out of the field
    keys.press("m")
    expect(page.get_by_role("listbox")).to_be_focused()
    keys.press("r")
    keys.press("Enter")
    expect(page.locator("#model")).to_contain_text("r1-scripted")
    keys.press("/")
    expect(page.locator("#composer")).to_be_focused()
    keys.type("whole")
    keys.press("Shift+Enter")
    keys.type("in two lines")
    keys.press("Enter")
    expect(page.locator(".answer")).to_have_count(1)
    tab.finished()
    assert page.locator(".question-text").inner_text() == "whole\nin two lines"
    keys.press("Escape")
    keys.press("t")
    expect(page.locator(".thought")).to_have_attribute("data-open", "true")
    keys.press("t")
    expect(page.locator(".thought")).to_have_attribute("data-open", "false")
    keys.press("r")
    expect(page.locator(".answer .branches")).to_contain_text("2/2")
    tab.finished()
    keys.press("Escape")
    keys.press("[")
    expect(page.locator(".answer .branches")).to_contain_text("1/2")
    keys.press("c")
    expect(page.locator(".toast")).to_contain_text("Copied")
    keys.press("k")
    assert page.evaluate("document.activeElement.tagName") == "ARTICLE"
    keys.press("e")
    expect(page.locator(".editing textarea")).to_be_focused()
    keys.press("Escape")
    expect(page.locator(".editing")).to_have_count(0)
    keys.press("b")
    expect(page.locator("#sidebar")).to_be_hidden()
    keys.press("b")
    keys.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    picture(page, "shortcuts")
    check_axe(page, "shortcuts")
    keys.press("Escape")
    keys.press(",")
    expect(page.get_by_role("dialog")).to_contain_text("System prompt")
    picture(page, "settings")
    check_axe(page, "settings")
    keys.press("Escape")
    keys.press("s")
    expect(page.locator("#deal")).to_be_visible()
    keys.press("n")
    expect(page.locator(".column .verdict")).to_have_count(2)
    keys.press("Control+Shift+O")
    expect(page.locator("#composer")).to_be_focused()
    # Every control that can be pressed can be reached by Tab and says what it is.
    page.locator(".skip").focus()
    seen = set()
    for _ in range(300):  # past the whole history
        if "composer" in seen:
            break
        keys.press("Tab")
        seen.add(page.evaluate("(n => n.id || n.getAttribute('aria-label') || n.textContent)(document.activeElement)"))
    for wanted in ("composer", "search", "model", "Preferences", "Shortcuts", "New chat", "Side by side"):
        assert wanted in seen, (wanted, seen)


def test_system_prompt_and_sampling_are_the_chats_own(tab: Tab) -> None:
    page = tab.fresh()
    page.get_by_role("button", name="Settings of this chat").click()
    page.get_by_label("System prompt").fill("Answer like a diver.")
    page.get_by_label("Temperature").fill("0.3")
    page.get_by_label("Temperature").blur()
    page.keyboard.press("Escape")
    tab.ask("short")
    tab.finished()
    chat = stored(page)
    assert chat["settings"]["system"] == "Answer like a diver." and chat["settings"]["temperature"] == 0.3
    expect(page.locator(".system-note")).to_be_visible()
    page.get_by_role("link", name="New chat").click()
    page.get_by_role("button", name="Settings of this chat").click()
    expect(page.get_by_label("System prompt")).to_have_value("")


def test_chinese_and_reduced_motion(browser: Browser, address: str, scripts: Scripts) -> None:
    tab = Tab(browser, address, locale="zh-CN", reduced_motion="reduce", color_scheme="light")
    page = tab.fresh()
    expect(page.locator("html")).to_have_attribute("lang", "zh")
    scripts.hold.clear()
    tab.ask("held thought")
    expect(page.locator(".phase-name")).to_have_text("思考中")
    expect(page.locator(".thought-text")).to_contain_text("Archimedes")
    moving = page.evaluate("document.getAnimations().filter(a => a.playState === 'running').length")
    assert moving == 0
    picture(page, "chinese")
    check_axe(page, "Chinese")
    scripts.hold.set()
    tab.finished()
    expect(page.locator(".thought-title")).to_contain_text("思考了")
    tab.close()


def test_it_can_be_installed(tab: Tab) -> None:
    page = tab.open()
    session = tab.context.new_cdp_session(page)
    assert session.send("Page.getAppManifest")["errors"] == []
    hindered = [error["errorId"] for error in session.send("Page.getInstallabilityErrors")["installabilityErrors"]]
    assert set(hindered) <= {"in-incognito"}  # which every context of this test is


def test_a_server_with_a_key_asks_for_it(browser: Browser, upstream: str, tmp_path: Path) -> None:
    server = serve("--upstream", upstream, "--db", str(tmp_path / "h.db"), "--api-key", "deep")
    tab = Tab(browser, next(server))
    page = tab.page
    page.goto(tab.address)
    page.get_by_label("Key of this server").fill("shallow")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").first).to_contain_text("not right")
    check_axe(page, "sign in")
    page.get_by_label("Key of this server").fill("deep")
    page.keyboard.press("Enter")
    expect(page.locator("#composer")).to_be_visible()
    tab.ask("short")
    tab.finished()
    page.get_by_role("button", name="Preferences").click()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Key of this server")).to_be_visible()
    tab.wrong.clear()  # the browser logs the refused key
    tab.close()
    next(server, None)
