"""What the page uses: chats as trees, answers that are followed and found again, search, files, side by side."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from serving import QUESTION, ask, follow, hadal_server, make_run

from hadal.errors import UserError
from hadal.server.launch import Settings, bind, price, serve
from hadal.server.store import Store, auto_title
from hadal.tasks import load_tasks

LONG = {"max_tokens": 250, "seed": 11, "thinking": True}
SHORT = {"max_tokens": 12, "seed": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def client(run, tmp_path_factory):
    with hadal_server(tmp_path_factory.mktemp("db") / "h.db", models=[str(run)]) as url:
        with httpx.Client(base_url=url, timeout=30) as client:
            yield client


def done(client, began):
    return follow(client, began["answer"]["id"])[-1][2]["message"]


# ------------------------------------------------------------------------------------- answers


def test_an_answer_is_followed_from_the_question_to_the_last_event(client):
    began = ask(client, settings=LONG)
    assert began["answer"]["status"] == "running" and began["answer"]["parent"] == began["question"]["id"]
    events = follow(client, began["answer"]["id"])
    assert [name for _, name, _ in events[:1]] == ["snapshot"] and events[-1][1] == "done"
    assert [number for number, _, _ in events] == sorted({number for number, _, _ in events})
    thought, answer = events[0][2]["message"]["thought"] or "", events[0][2]["message"]["content"]
    phases = [events[0][2]["phase"]]
    for _, name, data in events[1:]:
        if name == "delta":
            thought, answer = thought + data.get("thought", ""), answer + data.get("answer", "")
        elif name == "moved":
            thought, answer = data["thought"], ""
        elif name == "phase":
            phases.append(data["phase"])
    message = events[-1][2]["message"]
    assert (message["thought"], message["content"]) == (thought or None, answer)
    assert "thinking" in phases or events[0][2]["message"]["thought"]  # which a late reader finds there
    assert message["status"] == "done" and message["thought_ms"] is not None
    usage = message["usage"]
    assert usage["completion_tokens"] >= usage["reasoning_tokens"] > 0 and not usage["estimated"]
    assert message["cost"]["usd"] > 0 and message["cost"]["r1_usd"] > 0
    chat = client.get(f"/api/chats/{began['chat']['id']}").json()
    assert [m["id"] for m in chat["messages"]] == [began["question"]["id"], message["id"]]
    assert chat["messages"][1] == message and chat["tokens"] == usage["completion_tokens"] and chat["running"] == []


def test_a_second_tab_and_a_late_one_see_the_same(client):
    began = ask(client, settings=LONG | {"seed": 12})
    seen = []
    tabs = [threading.Thread(target=lambda: seen.append(follow(client, began["answer"]["id"]))) for _ in range(3)]
    for tab in tabs:
        tab.start()
    for tab in tabs:
        tab.join()
    assert len({json.dumps(events[-1][2]["message"]) for events in seen}) == 1
    again = follow(client, began["answer"]["id"], after=3)
    assert [name for _, name, _ in again] == ["done"] and again[0][2]["message"] == seen[0][-1][2]["message"]


def test_a_tab_that_was_away_gets_what_it_missed(client):
    began = ask(client, settings=LONG | {"seed": 13})
    answer = began["answer"]["id"]
    with client.stream("GET", f"/api/answers/{answer}/events") as reply:
        last = None
        for line in reply.iter_lines():
            if line.startswith("id: "):
                last = int(line[4:])
            if line == "event: delta":
                break
    rest = follow(client, answer, after=last)
    assert rest[0][0] == last + 1 or rest[0][1] == "done"
    assert rest[0][1] != "snapshot"


def test_stop_keeps_what_came_and_continue_goes_on_from_there(client):
    whole = done(client, ask(client, settings=LONG | {"seed": 15}))
    began = ask(client, settings=LONG | {"seed": 15})
    answer = began["answer"]["id"]
    with client.stream("GET", f"/api/answers/{answer}/events") as reply:
        for count, line in enumerate(reply.iter_lines()):
            if count > 20 and line == "event: delta":
                break
    stopped = client.post(f"/api/answers/{answer}/stop").json()
    assert stopped["status"] == "stopped"
    said = (stopped["thought"] or "") + stopped["content"]
    assert said and ((whole["thought"] or "") + whole["content"]).startswith(said)
    assert client.post(f"/api/answers/{answer}/stop").json() == stopped  # nothing more to stop
    going = client.post(f"/api/answers/{answer}/continue").json()
    assert going["status"] == "running" and going["id"] == answer
    assert client.post(f"/api/answers/{answer}/continue").status_code == 409
    ended = follow(client, answer)[-1][2]["message"]
    assert ((ended["thought"] or "") + ended["content"]).startswith(said) and ended["status"] == "done"
    assert ended["usage"]["completion_tokens"] > stopped["usage"]["completion_tokens"]


def test_answer_now_closes_the_thought(client):
    for seed in range(40, 60):  # one that would think for long
        plain = done(client, ask(client, settings={"thinking": True, "seed": seed, "max_tokens": 250}))
        if plain["usage"]["reasoning_tokens"] > 200:
            break
    began = ask(client, settings={"thinking": True, "seed": seed, "max_tokens": 250})
    assert client.post(f"/api/answers/{began['answer']['id']}/answer-now").status_code == 204
    message = done(client, began)
    assert message["answered_now"] and message["usage"]["reasoning_tokens"] < plain["usage"]["reasoning_tokens"]
    assert client.post(f"/api/answers/{began['answer']['id']}/answer-now").status_code == 204  # a moment too late
    assert client.post("/api/answers/none/answer-now").status_code == 404
    silent = ask(client, settings={"thinking": False, "max_tokens": 300, "seed": 3})
    assert client.post(f"/api/answers/{silent['answer']['id']}/answer-now").status_code == 409
    client.post(f"/api/answers/{silent['answer']['id']}/stop")


def test_regenerating_and_editing_make_branches(client):
    first = ask(client, settings=SHORT)
    chat, question = first["chat"]["id"], first["question"]["id"]
    done(client, first)
    again = client.post(f"/api/chats/{chat}/answers", json={"parent": question, "model": "tiny:base"}).json()
    assert again["question"] is None and again["answer"]["parent"] == question
    done(client, again)
    edited = ask(client, "How many t in strawberry?", chat, None)
    done(client, edited)
    below = ask(client, "And now?", chat, first["answer"]["id"])
    done(client, below)
    tree = client.get(f"/api/chats/{chat}").json()
    parents = [m["parent"] for m in tree["messages"]]
    assert parents == [None, question, question, None, edited["question"]["id"], first["answer"]["id"],
                       below["question"]["id"]]  # fmt: skip
    assert tree["leaf"] == below["answer"]["id"] and tree["model"] == "tiny:base" and tree["title"] == QUESTION
    assert {m["model"] for m in tree["messages"] if m["role"] == "assistant"} == {"tiny", "tiny:base"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422), ({"content": ""}, 422), ({"content": "x", "parent": "nope"}, 404),
        ({"content": "x", "model": "no"}, 404),
        ({"content": "x", "settings": {"temperature": -1}}, 422), ({"content": "x", "surprise": 1}, 422),
        ({"content": "why " * 3000}, 422),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_leaves_no_trace(client, body, status):
    chat = client.post("/api/chats", json={}).json()["id"]
    reply = client.post(f"/api/chats/{chat}/answers", json=body)
    assert reply.status_code == status and reply.json()["error"]["message"]
    assert client.get(f"/api/chats/{chat}").json()["messages"] == []


def test_a_deleted_chat_stops_its_answers(client):
    began = ask(client, settings=LONG)
    assert client.delete(f"/api/chats/{began['chat']['id']}").status_code == 204
    assert client.get(f"/api/answers/{began['answer']['id']}").status_code == 404
    assert client.get(f"/api/chats/{began['chat']['id']}").status_code == 404


# ------------------------------------------------------------------------------------- history


def test_search_finds_parts_of_words_in_any_script(client):
    for text in ("Is a quokka a marsupial?", "数学题:一加一等于几?", "100% of <b>tags</b> & \"quotes\" _under_"):
        done(client, ask(client, text, settings=SHORT))

    def found(q):
        chats = client.get("/api/chats", params={"q": q}).json()["chats"]
        return [chat["title"] for chat in chats if chat["snippet"]]

    assert found("quokka") == found("QUOK mars") == found("qu supial") == ["Is a quokka a marsupial?"]
    assert len(found("数学")) == 1 and len(found("一加一")) == 1
    assert len(found('"quotes"')) == len(found("100%")) == len(found("_under_")) == len(found("<b>")) == 1
    assert found("quokka zebra") == [] and found("100_") == [] and found("' OR 1=1 --") == []
    (chat,) = client.get("/api/chats", params={"q": "marsupial"}).json()["chats"]
    assert [part for part, hit in chat["snippet"]["parts"] if hit] == ["marsupial"]


def test_chats_are_listed_by_their_last_change_and_in_pages(client):
    made = [client.post("/api/chats", json={"title": f"page {i}"}).json() for i in range(5)]
    first = client.get("/api/chats", params={"limit": 2, "q": "page"}).json()
    assert first["more"] and len(first["chats"]) == 2
    rest = client.get("/api/chats", params={"before": first["chats"][-1]["updated"], "q": "page"}).json()
    times = [chat["updated"] for chat in first["chats"] + rest["chats"]]
    assert times == sorted(times, reverse=True) and {c["title"] for c in rest["chats"]} <= {c["title"] for c in made}


def test_titles_are_the_questions_until_the_user_names_them(client):
    began = ask(client, "First line of it\nand a second", settings=SHORT)
    chat = began["chat"]
    done(client, began)
    assert chat["title"] == "First line of it" and not chat["titled"]
    named = client.patch(f"/api/chats/{chat['id']}", json={"title": "Mine"}).json()
    assert named["title"] == "Mine" and named["titled"]
    assert client.patch(f"/api/chats/{chat['id']}", json={"title": ""}).json()["title"] == "First line of it"
    long = "word " * 40
    assert auto_title(long).startswith("word word") and len(auto_title(long)) <= 61 and auto_title(long).endswith("…")


@pytest.mark.parametrize("thoughts", [True, False])
@pytest.mark.parametrize("format", ["json", "markdown"])
def test_what_is_exported_comes_back(client, format, thoughts):
    text = "A #heading\n\n<!-- hadal:user -->\n```\ncode\n```\n$x$ <script>"
    first = ask(client, text, settings={"thinking": True, "max_tokens": 40, "seed": 2})
    chat = first["chat"]["id"]
    done(client, first)
    done(client, ask(client, "And?", chat, first["answer"]["id"], settings=SHORT))
    reply = client.get(f"/api/chats/{chat}/export", params={"format": format, "thoughts": thoughts})
    assert reply.headers["content-disposition"].startswith("attachment")
    kind = reply.headers["content-type"]
    made = client.post("/api/import", content=reply.content, headers={"content-type": kind}).json()["chats"]
    (copy,) = (client.get(f"/api/chats/{c['id']}").json() for c in made)
    source = client.get(f"/api/chats/{chat}").json()

    def said(messages):
        defuse = (lambda s: s.replace("<!-- hadal", "<!--hadal").strip()) if format == "markdown" else (lambda s: s)
        return [(m["role"], defuse(m["content"]), defuse(m["thought"] or "") if thoughts else "") for m in messages]

    assert said(copy["messages"]) == said(source["messages"])
    if not thoughts:
        assert all(m["thought"] is None for m in copy["messages"])
    assert [m["parent"] is None for m in copy["messages"]] == [True, False, False, False]


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{}", "application/json", 422), (b"[1", "application/json", 400), (b"no marks", "text/markdown", 422),
        (b"x", "text/plain", 415), (b"\xff", "text/markdown", 400),
        (json.dumps({"hadal_chats": 1, "chats": [{"messages": [{"id": "a", "parent": "b", "role": "user"}]}]}).encode(),
         "application/json", 422),
        (json.dumps({"hadal_chats": 2, "chats": []}).encode(), "application/json", 422),
    ],
)  # fmt: skip
def test_files_that_are_none_are_refused(client, content, kind, status):
    reply = client.post("/api/import", content=content, headers={"content-type": kind})
    assert reply.status_code == status and reply.json()["error"]["message"]


def test_preferences_are_kept(client):
    assert client.put("/api/preferences", json={"theme": "dark"}).json() == {"theme": "dark"}
    assert client.get("/api/preferences").json() == {"theme": "dark"}
    assert client.put("/api/preferences", json={"x": "y" * 20_000}).status_code == 413


# ------------------------------------------------------------------------------------- side by side


def test_a_duel_deals_a_held_out_problem_and_the_tasks_scorer_judges(client):
    assert client.get("/api/models").json()["pairs"] == [["tiny:base", "tiny"]]
    tasks = client.get("/api/tasks").json()["tasks"]
    assert [t["name"] for t in tasks if t["grown"]] == ["letters", "sums"] and tasks[0]["grown"]
    body = {"models": ["tiny:base", "tiny"], "task": "sums", "difficulty": 4, "settings": {"max_tokens": 30}}
    duel = client.post("/api/duels", json=body).json()
    assert duel["chat"]["kind"] == "duel" and [a["model"] for a in duel["answers"]] == body["models"]
    ended = [follow(client, a["id"])[-1][2] for a in duel["answers"]]
    problem = load_tasks(["sums"])["sums"].recognise(duel["question"]["content"])
    chat = client.get(f"/api/chats/{duel['chat']['id']}").json()
    assert chat["duel"]["held_out"] and chat["duel"]["gold"] is not None
    for event in ended:
        verdict = event["message"]["verdict"]
        assert verdict["gold"] == chat["duel"]["gold"] and verdict["right"] is False and verdict["task"] == "sums"
    if problem is not None:  # not when its wording has a slip
        assert problem.answer == chat["duel"]["gold"]
    score = client.get("/api/duels/score", params={"models": "tiny,tiny:base"}).json()
    assert score["rounds"] == 1 and score["neither"] == 1 and score["models"]["tiny"] == {"right": 0, "wrong": 1}
    assert client.delete("/api/duels").status_code == 204
    assert client.get("/api/duels/score", params={"models": "tiny,tiny:base"}).json()["rounds"] == 0


@pytest.mark.parametrize(("gold", "right"), [(None, None), ("certainly not this", False)])
def test_an_own_problem_is_judged_by_its_answer_or_the_user(client, gold, right):
    body = {"models": ["tiny", "tiny:base"], "question": "What is it?", "settings": SHORT}
    duel = client.post("/api/duels", json=body | ({} if gold is None else {"gold": gold})).json()
    messages = [follow(client, a["id"])[-1][2]["message"] for a in duel["answers"]]
    assert [m["verdict"]["right"] for m in messages] == [right, right]
    said = client.patch(f"/api/answers/{messages[0]['id']}", json={"right": True})
    assert said.status_code == (200 if gold is None else 409)
    if gold is None:
        assert said.json()["verdict"] == {"right": True, "note": "", "gold": None, "task": None, "by": "user"}


def test_a_question_of_a_task_is_recognised_and_judged(client):
    message = done(client, ask(client, "How many r in strawberry?", settings=SHORT))
    assert message["verdict"]["task"] == "letters" and message["verdict"]["gold"] == "3"


@pytest.mark.parametrize(
    "body",
    [
        {"models": ["tiny"]}, {"models": ["tiny"], "task": "sums", "question": "x"}, {"models": [], "task": "sums"},
        {"models": ["tiny", "tiny"], "task": "sums"}, {"models": ["tiny"], "task": "nope"},
        {"models": ["tiny"], "task": "sums", "difficulty": 999}, {"models": ["gone"], "task": "sums"},
    ],
)  # fmt: skip
def test_duels_that_cannot_be(client, body):
    assert client.post("/api/duels", json=body).status_code in (404, 422)


# ------------------------------------------------------------------------------------- who may come in


def test_other_hosts_and_other_pages_are_refused(client):
    assert client.get("/api/chats", headers={"host": "evil.example"}).status_code == 403  # DNS rebinding
    assert client.get("/v1/models", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post("/api/chats", json={}, headers={"origin": "null"}).status_code == 403
    assert client.delete("/api/chats", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    own = str(client.base_url).rstrip("/")
    assert client.post("/api/chats", json={}, headers={"origin": own}).status_code == 201
    assert client.post("/api/chats", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415


def test_pages_come_with_a_strict_policy(client):
    headers = client.get("/healthz").headers
    assert "script-src 'self'" in headers["content-security-policy"] and "unsafe" not in headers[
        "content-security-policy"].replace("style-src-attr 'unsafe-inline'", "")  # fmt: skip
    assert headers["x-content-type-options"] == "nosniff"
    for path in ("/../store.py", "/%2e%2e/store.py", "/..%2fstore.py", "/assets/../../store.py"):
        assert "sqlalchemy" not in client.get(path).text


def test_a_key_opens_the_api_and_the_page(run, tmp_path):
    served = hadal_server(tmp_path / "h.db", models=[str(run)], api_key="s3cret")
    with served as url, httpx.Client(base_url=url) as client:
        for path in ("/v1/models", "/api/chats", "/metrics", "/openapi.json"):
            assert client.get(path).status_code == 401, path
            assert client.get(path, headers={"authorization": "Bearer s3cret"}).status_code == 200, path
        session = client.get("/api/session").json()
        assert session["login"] and not session["signed_in"]
        assert client.post("/api/session", json={"key": "wrong"}).status_code == 401
        assert client.post("/api/session", json={"key": "s3cret"}).status_code == 204
        assert client.get("/api/chats").status_code == 200 and client.get("/api/session").json()["signed_in"]


# ------------------------------------------------------------------------------------- ends and beginnings


def start(run: Path, db: Path) -> tuple[subprocess.Popen, httpx.Client]:
    port = bind("127.0.0.1", 0)
    number = port.getsockname()[1]
    port.close()
    command = [sys.executable, "-m", "hadal", "serve", str(run), "--port", str(number), "--db", str(db)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True)
    client = httpx.Client(base_url=f"http://127.0.0.1:{number}", timeout=30)
    end = time.monotonic() + 60
    while True:
        try:
            client.get("/healthz")
            return process, client
        except httpx.ConnectError:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        except httpx.ReadTimeout:  # bound, and not serving yet
            assert time.monotonic() < end


@pytest.mark.long
def test_killed_in_mid_stream_everything_finished_is_there_once(run, tmp_path):
    process, client = start(run, tmp_path / "h.db")
    finished = [done(client, ask(client, f"Question {i}?", settings=SHORT | {"seed": i})) for i in range(4)]
    running = [ask(client, f"Long one {i}", settings=LONG | {"seed": i, "max_tokens": 900}) for i in range(6)]
    time.sleep(1.5)  # some of it has been saved
    process.send_signal(signal.SIGKILL)
    process.wait()
    process, client = start(run, tmp_path / "h.db")
    try:
        chats = client.get("/api/chats", params={"limit": 200}).json()["chats"]
        assert len(chats) == len(finished) + len(running)
        kept = {m["id"]: m for c in chats for m in client.get(f"/api/chats/{c['id']}").json()["messages"]}
        assert all(kept[m["id"]] == m for m in finished)
        assert {kept[b["answer"]["id"]]["status"] for b in running} <= {"interrupted", "done"}
        broken = [kept[b["answer"]["id"]] for b in running if kept[b["answer"]["id"]]["status"] == "interrupted"]
        for message in broken[:1]:
            assert client.post(f"/api/answers/{message['id']}/continue").status_code in (200, 409)
            follow(client, message["id"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def served(**settings):
    with pytest.raises(UserError) as caught:
        serve(Settings(**settings), lambda line: None)
    line = str(caught.value)
    assert "\n" not in line and caught.value.remedy
    return line


def test_bad_beginnings_are_one_line_each(run, tmp_path):
    db = tmp_path / "h.db"
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert "taken" in served(models=[str(run)], port=port, db=db)
    assert "There is no folder" in served(models=[str(tmp_path / "gone")], port=0, db=db)
    assert "--api-key" in served(models=[str(run)], host="0.0.0.0", port=0, db=db)
    assert "nothing to serve" in served(db=db)
    assert "cannot be reached" in served(upstreams=["http://127.0.0.1:9/v1"], port=0, db=db)
    assert "not the address" in served(upstreams=["ftp://x"], port=0, db=db)
    assert "not a price" in served(models=[str(run)], prices=["r1=1,2"], port=0, db=db)
    assert price("a=b=1,2,3")[0] == "a=b"
    assert "name" in served(models=[str(run), str(run)], port=0, db=db)

    store = Store(db)
    assert "Another hadal" in served(models=[str(run)], port=0, db=db)
    store.close()
    import sqlite3

    with sqlite3.connect(db) as other:
        other.execute("UPDATE hadal SET value = '99' WHERE name = 'version'")
    other.close()
    assert "version 99" in served(models=[str(run)], port=0, db=db)
    junk = tmp_path / "junk.db"
    junk.write_bytes(b"no database at all" * 100)
    assert "cannot be used" in served(models=[str(run)], port=0, db=junk)
    alien = tmp_path / "alien.db"
    with sqlite3.connect(alien) as other:
        other.execute("CREATE TABLE cats (name TEXT)")
    other.close()
    assert "another program's" in served(models=[str(run)], port=0, db=alien)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in served(models=[str(run)], port=0, db=tmp_path / "file" / "h.db")
