"""The report: figures as the run wrote them, hostile text kept as text, no sentence beyond the numbers."""

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sample_run import TASKS, examination, make_sample_chain, make_sample_run

from hadal.cost.prices import API_PRICES
from hadal.errors import UserError
from hadal.evaluate.statistics import mean_of
from hadal.files import write_json
from hadal.report.charts import Series, line_chart, thin, ticks
from hadal.report.comparison import headline
from hadal.report.examined import examined
from hadal.report.findings import change, findings, past_frontier, wilson
from hadal.report.run import write_report
from hadal.report.words import money, number, percent, span

VOID = {"meta", "br", "hr", "img", "link", "input"}
HOSTILE = (
    '</p><script>alert(1)</script><img src="https://evil.example/x" onerror="alert(2)">'
    "\x1b[31m\u202e```\n# x|y"
)


class Page(HTMLParser):
    """Checks that tags close in order; collects tags, attributes and text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "dense-seed0"
    evaluation = make_sample_run(run, pretrain_steps=300, grpo_steps=60)
    return run, evaluation, write_report(run)


def test_report_json_holds_the_figures_of_the_evaluation(sample):
    run, evaluation, returned = sample
    report = json.loads((run / "report.json").read_text())
    assert report == returned
    keys = (
        "accuracy", "low", "high", "n", "accuracy_thinking", "accuracy_direct", "length",
        "thinking_share", "frontier",
    )  # fmt: skip
    for name in TASKS:
        for side in ("base", "rl"):
            for key in keys:
                assert report["tasks"][name][side][key] == evaluation["tasks"][name][side][key]
    for side in ("base", "rl"):
        assert set(keys) <= set(report["mean"][side])
        assert report["mean"][side]["accuracy"] == evaluation["mean"][side]["accuracy"]


def test_report_json_adds_up_the_ledger(sample):
    _, _, report = sample
    assert report["seconds"] == 193.0 + 71.5 + 50.25 + 61.0
    assert report["peak_memory_bytes"] == 934e6
    assert report["cost_usd"] == pytest.approx(375.75 / 3600 * 0.009)
    assert [stage["stage"] for stage in report["stages"]] == ["pretrain", "grpo", "evaluate"]
    grpo = report["stages"][1]
    assert (grpo["seconds"], grpo["tokens_trained"], grpo["tokens_sampled"]) == (121.75, 1_800_000, 3_200_000)
    assert grpo["peak_memory_bytes"] == 934e6 and grpo["tokens_per_second"] == 16e3


def test_a_right_answer_costs_its_tokens(sample):
    _, evaluation, report = sample
    rl = evaluation["mean"]["rl"]
    tokens = rl["length"] / rl["accuracy"]
    cost = report["answer_cost"]["rl"]
    assert cost["tokens_per_right_answer"] == pytest.approx(tokens)
    assert cost["usd_per_right_answer"] == pytest.approx(tokens * (61.0 / 3600 * 0.009) / 2_400_000)
    for api in API_PRICES:
        assert cost["api_usd_per_right_answer"][api.model] == pytest.approx(tokens * api.output / 1e6)


def test_html_is_well_formed_and_loads_nothing(sample):
    run, _, report = sample
    source = (run / "report.html").read_text()
    page = Page(source)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "base", "form"}
    for _, attributes in page.tags:
        assert not {"src", "href", "srcset", "data", "action"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
    assert (
        "url(" not in source and "@import" not in source and "http:" not in source and "https:" not in source
    )
    for piece in (
        report["headline"],
        "How many r in strawberry?",
        "✗ wrong",
        "D = 8",
        "Left out",
        "mine",
        "o1",
    ):
        assert piece in page.text
    for finding in report["findings"]:
        for sentence in finding["sentences"]:
            assert sentence in page.text
    charts = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(charts) == 6 + 6 + 5 + 5  # tasks and mean, learning, frontiers, pass@k
    assert all(attributes["aria-label"] for attributes in charts)


def test_figures_of_the_pages_are_those_of_the_evaluation(sample):
    run, evaluation, _ = sample
    html, text = Page((run / "report.html").read_text()).text, (run / "report.md").read_text()
    for name, task in evaluation["tasks"].items():
        for side in ("base", "rl"):
            assert percent(task[side]["accuracy"]) in html
            assert percent(task[side]["accuracy"]) in text
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert percent(task["rl"]["accuracy"]) in row and "n 500" in row


def test_what_a_model_wrote_stays_text(tmp_path):
    run = tmp_path / "r"
    evaluation = make_sample_run(run, 20, 20)
    evaluation["examples"] = [
        {
            "task": HOSTILE,
            "question": HOSTILE,
            "gold": HOSTILE,
            "base": {"text": HOSTILE, "right": None},
            "rl": {"text": f"<think>{HOSTILE}", "right": False},
        }
    ]
    evaluation["left_out"] = {HOSTILE: HOSTILE}
    evaluation["tasks"][HOSTILE] = evaluation["tasks"].pop("sort")
    write_json(run / "evaluation.json", evaluation)
    write_report(run)
    source = (run / "report.html").read_text()
    page = Page(source)
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert "<script>alert(1)</script>" in page.text
    assert "\x1b" not in source and "\u202e" not in source
    markdown = (run / "report.md").read_text()
    assert "\x1b" not in markdown and "\u202e" not in markdown
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", markdown, flags=re.M | re.S)
    assert "<script" not in outside.replace(r"\<script", "")
    for line in outside.splitlines():
        if line.startswith("|"):  # a bar in a name opens no new cell
            assert len(re.findall(r"(?<!\\)\|", line)) in (5, 6, 7, 8, 9, 10), line


def test_a_run_without_tasks_or_curves_still_has_a_page(tmp_path):
    run = tmp_path / "r"
    make_sample_run(run, 5, 5)
    write_json(
        run / "evaluation.json", {"tasks": {}, "mean": {}, "left_out": {"sums": "not learned in time"}}
    )
    for name in ("metrics", "timing", "ledger"):
        (run / f"{name}.jsonl").unlink()
    report = write_report(run)
    assert report["headline"] == "No task was learned this time"
    assert report["seconds"] is None and report["answer_cost"] is None
    text = Page((run / "report.html").read_text()).text
    assert "not learned in time" in text and "While it learned" not in text
    assert "not learned in time" in (run / "report.md").read_text()


@pytest.mark.parametrize(
    "missing", ["modes", "pass_at_k", "by_difficulty", "new_phrasing", "frontier", "thinking_share"]
)
def test_what_was_not_measured_is_left_out(tmp_path, missing):
    run = tmp_path / "r"
    evaluation = make_sample_run(run, 5, 5)
    for task in evaluation["tasks"].values():
        for side in ("base", "rl"):
            task[side].pop(missing)
    for side in ("base", "rl"):
        evaluation["mean"][side].pop(missing, None)
    write_json(run / "evaluation.json", evaluation)
    write_report(run)
    Page((run / "report.html").read_text())


@pytest.mark.parametrize(
    "harm", [lambda p: p.unlink(), lambda p: p.write_text("{"), lambda p: p.write_text("[]")]
)
def test_a_missing_or_broken_evaluation_names_the_remedy(tmp_path, harm):
    run = tmp_path / "r"
    make_sample_run(run, 5, 5)
    harm(run / "evaluation.json")
    with pytest.raises(UserError, match="hadal quickstart --out|the command that began it"):
        write_report(run)
    assert not (run / "report.json").exists()


def test_a_chain_has_a_row_for_each_model_and_a_card_for_each_step(tmp_path):
    run = tmp_path / "r"
    make_sample_chain(run)
    report = write_report(run)
    assert [row["stage"] for row in report["rows"]] == ["base", "r1-zero", "dev1", "r1"]
    assert report["headline"] == "It learned to think: from 20% (base) to 90% (r1) right"
    cards = {finding["question"]: finding["verdict"] for finding in report["findings"]}
    assert cards == {"base → r1-zero": "higher", "base → dev1": "higher", "dev1 → r1": "higher",
                     "r1 against r1-zero": "higher"}  # fmt: skip
    assert report["reflection"] == {"r1-zero": [[5, 1.0]], "r1": [[5, 1.0]]}
    example = report["examples"][0]  # one that r1 gets right and the base does not
    assert [said["right"] for said in example["said"]] == [False, True, True, True]
    page, text = Page((run / "report.html").read_text()), (run / "report.md").read_text()
    titles = {"The stages", "Task by task", "What each stage changed", "While it learned", "Rejection sampling",
              "What it cost", "The same problem after each stage"}  # fmt: skip
    assert all(title in page.text for title in titles)
    for shown in (page.text, text):
        assert all(word in shown for word in ("cons@3", "77.9", "Entropy fell to 0.2 nats.", "41", "retry", "talk 8?"))
        assert "Before and after" not in shown and "Sharpening" not in shown
    charts = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert "Reward: r1-zero from 0.2 to 1; r1 from 0.2 to 1" in charts
    assert "Right on held-out problems: r1-zero from 0.75 to 0.75; r1 from 0.75 to 0.75" in charts
    assert len(charts) == 2 * 4 + 6 + 2  # tasks, what RL is watched by, losses


def test_models_that_were_given_different_tasks_are_not_compared(tmp_path):
    run = tmp_path / "r"
    make_sample_chain(run)
    path = run / "stages" / "evaluate-base" / "result.json"
    base = json.loads(path.read_text())
    tasks = {"sort": base["tasks"].pop("sums")}
    write_json(path, base | {"tasks": tasks, "right": {"sort": base["right"]["sums"]}, "responses": {}})
    report = write_report(run)
    assert report["headline"] == "No gain is shown: the first and the last model were given different tasks"
    assert {finding["question"] for finding in report["findings"]} == {"dev1 → r1", "r1 against r1-zero"}


def test_a_chain_that_was_examined_in_depth_has_both_sides(tmp_path):
    """The sections follow what was measured, not what sort of run it was."""
    run, deep = tmp_path / "r", make_sample_run(tmp_path / "quick", 5, 5)
    make_sample_chain(run)
    for stage, side in (("base", "base"), ("r1", "rl")):
        tasks = {name: {**task[side], "about": task["about"]} for name, task in deep["tasks"].items()}
        left = examination(0.5) | {"tasks": tasks, "mean": deep["mean"][side], "responses": {}, "right": {}}
        write_json(run / "stages" / f"evaluate-{stage}" / "result.json", left)
    for stage in ("r1-zero", "dev1"):
        (run / "stages" / f"evaluate-{stage}" / "result.json").unlink()
    write_json(run / "evaluation.json", deep)
    report = write_report(run)
    assert report["tasks"]["sums"]["gold_limit"] == 8 and report["left_out"].keys() == {"mine"}
    assert report["tasks"].keys() == TASKS.keys() and report["headline"].startswith("It learned to think: from 42%")
    assert [finding["name"] for finding in report["findings"]] == ["mode", "sharpening", "skill"]
    assert "Before and after, task by task" in Page((run / "report.html").read_text()).text


# ------------------------------------------------------------------------------------------- honest sentences


def numbers(tmp_path):
    evaluation = make_sample_run(tmp_path / "r", 5, 5)
    return copy.deepcopy(evaluation["tasks"]), copy.deepcopy(evaluation["mean"])


def first_sentence(tasks, mean):
    """The headline of a run that evaluated so."""
    return headline(examined(Path("no-such-run"), {}, {"tasks": tasks, "mean": mean}), "rl")


def test_equal_models_are_told_as_equal(tmp_path):
    tasks, mean = numbers(tmp_path)
    for entry in [*tasks.values(), mean]:
        entry["rl"] = copy.deepcopy(entry["base"])
    mode, sharpening, skill = findings(tasks, mean)
    assert [f.changed for f in (mode, sharpening, skill)] == [False] * 3
    assert [f.verdict for f in (mode, sharpening, skill)] == ["No change shown"] * 3
    assert "no gain is shown" in " ".join(mode.sentences)
    assert "the intervals overlap" in " ".join(sharpening.sentences)
    assert "no change is shown" in " ".join(skill.sentences)
    assert first_sentence(tasks, mean).startswith("No gain is shown")
    for finding in (mode, sharpening, skill):
        assert "rose" not in " ".join(finding.sentences)


def test_pure_mode_is_not_sold_as_skill(tmp_path):
    """Only the share that thinks moves; accuracy when made to think, greedy and pass@k stay."""
    tasks, mean = numbers(tmp_path)
    for entry in tasks.values():
        free = copy.deepcopy(entry["base"])
        entry["rl"] = free | {"thinking_share": 0.98, **wilson(entry["base"]["accuracy_thinking"], 500)}
    forced = mean["base"]["accuracy_thinking"]
    mean["rl"] = mean["base"] | {"thinking_share": 0.98, **wilson(forced, 2500)}
    mode, sharpening, skill = findings(tasks, mean)
    assert mode.changed and mode.verdict == "Yes"
    assert "explains the whole gain" in " ".join(mode.sentences)
    assert not sharpening.changed and not skill.changed
    assert "not sharpening" in " ".join(sharpening.sentences)


def test_a_loss_is_told_as_a_loss(tmp_path):
    tasks, mean = numbers(tmp_path)
    for entry in [*tasks.values(), mean]:
        entry["base"], entry["rl"] = entry["rl"], entry["base"]
    mode, sharpening, skill = findings(tasks, mean)
    assert mode.verdict == "No, less often"
    assert "accuracy fell" in " ".join(mode.sentences)
    assert sharpening.verdict == "No, worse"
    assert skill.verdict.startswith("No; it lost on")
    assert first_sentence(tasks, mean).startswith("It got worse")


def test_skill_needs_intervals_that_are_apart(tmp_path):
    tasks, mean = numbers(tmp_path)
    skill = findings(tasks, mean)[2]
    assert skill.verdict == "Yes, on sums, letters, countdown and ball (4 of 5 tasks)"
    sort = next(sentence for sentence in skill.sentences if sentence.startswith("sort:"))
    assert sort.endswith("the intervals overlap, so no change is shown.")
    assert "more pre-training" in skill.sentences[-1]


def test_a_task_that_the_base_masters_shows_no_skill(tmp_path):
    tasks, mean = numbers(tmp_path)
    for row in tasks["sums"]["base"]["by_difficulty"]:
        row.update(wilson(0.9, 200))
    tasks["sums"]["base"]["frontier"] = None
    assert past_frontier(tasks["sums"]) is None
    skill = findings(tasks, mean)[2]
    assert "cannot show whether skill grew" in skill.sentences[0]
    assert "sums" not in skill.verdict


def test_first_difficulty_past_the_frontier(tmp_path):
    tasks, _ = numbers(tmp_path)
    assert past_frontier(tasks["sums"])[0] == 10  # the base's frontier is 9.3
    tasks["sums"]["base"]["frontier"] = None  # below one half throughout
    for row in tasks["sums"]["base"]["by_difficulty"]:
        row.update(wilson(0.2, 200))
    assert past_frontier(tasks["sums"])[0] == 4


def test_wilson_by_reference():
    """Reference: the interval of 15 of 20 in Newcombe's worked form, and the closed form at the ends."""
    estimate = wilson(0.75, 20)
    assert (estimate["low"], estimate["high"]) == pytest.approx((0.5313, 0.8881), abs=1e-4)
    none = wilson(0.0, 100)
    z2 = 1.959964**2
    assert none["low"] == pytest.approx(0, abs=1e-12) and none["high"] == pytest.approx(z2 / (100 + z2))


def test_mean_of_equal_estimates_narrows_by_the_root():
    one = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "n": 100}
    mean = mean_of([one] * 4)
    assert (mean["accuracy"], mean["low"], mean["high"], mean["n"]) == pytest.approx((0.5, 0.45, 0.55, 400))


def test_change_needs_a_gap():
    low, high = {"low": 0.1, "high": 0.2}, {"low": 0.2, "high": 0.3}
    assert change(low, high) == 0
    assert change(low, {"low": 0.21, "high": 0.3}) == 1
    assert change({"low": 0.21, "high": 0.3}, low) == -1


# ---------------------------------------------------------------------------------- numbers and charts


def test_percent_never_rounds_up_to_all_or_down_to_none():
    assert [percent(x) for x in (0, 0.0004, 0.53, 0.994, 0.9999, 1)] == [
        "0%",
        "0.1%",
        "53%",
        "99.4%",
        "99.9%",
        "100%",
    ]


def test_numbers_in_words():
    assert [money(x) for x in (None, 0, 0.00042, 0.0000000031, 0.5, 110.84, 3036.2)] == [
        "–", "$0", "$0.00042", "$0.0000000031", "$0.50", "$110.84", "$3,036.20",
    ]  # fmt: skip
    assert [number(x) for x in (None, 500, 35.04, 3210.0, 1_400_000, 4.9e13)] == [
        "–",
        "500",
        "35.0",
        "3.21k",
        "1.4M",
        "4.9e13",
    ]
    assert [span(x) for x in (42, 342.2, 7500)] == ["42 s", "5 min 42 s", "2 h 05 min"]


def test_long_series_are_thinned_to_their_means():
    points = [(float(x), float(x)) for x in range(1000)] + [(1000.0, float("nan"))]
    short = thin(points, 10)
    assert len(short) == 10
    assert sum(y for _, y in short) / 10 == pytest.approx(499.5)


def test_ticks_are_round_and_inside():
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert ticks(3, 18) == [5, 10, 15]
    assert ticks(5, 5) == [5]


def test_a_chart_stays_inside_its_frame_and_a_point_alone_is_drawn():
    lines = [Series("a", "rl", [(1, 0.0), (9, 1.0)], [(1, 0.0, 0.1), (9, 0.9, 1.0)])]
    source = line_chart(lines, "x", "told", True, marks=[(4, "D = 4")], half=True)
    Page(source)
    for pair in re.findall(r'points="([^"]+)"', source):
        for point in pair.split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= 360 and 0 <= y <= 216
    assert "<circle" in line_chart([Series("a", "rl", [(3, 2.0)])], "x", "told")
    assert "Not measured" in line_chart([Series("a", "rl", [])], "x", "told")
