"""The public API, met by OpenAI's own client: streaming, errors, cancelling, log-probabilities, usage."""

import asyncio
import json
import math
import threading
import time

import httpx
import openai
import pytest
from serving import CONTEXT, QUESTION, ask, follow, hadal_server, make_run

from hadal.engine import LLM, SamplingParams
from hadal.errors import UserError
from hadal.server import streams
from hadal.server.launch import Settings, prepare
from hadal.text.tokenizer import Tokenizer

ASK = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def url(run, tmp_path_factory):
    db = tmp_path_factory.mktemp("db") / "h.db"
    with hadal_server(db, models=[str(run)], max_running=8, max_waiting=4) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30)


@pytest.fixture(scope="module")
def llm(run):
    """The same model, asked without a server: what the API says must be what it says."""
    return LLM.load(run)


def expected(llm, **settings):
    params = SamplingParams.of({"temperature": 0.6, "top_p": 0.95} | settings)
    (output,) = llm.chat(ASK, params)
    return output


def test_models_are_listed(client):
    models = client.models.list().data
    assert [m.id for m in models] == ["tiny", "tiny:base"] and models[0].owned_by == "hadal"
    assert client.models.retrieve("tiny:base").id == "tiny:base"
    with pytest.raises(openai.NotFoundError, match="no model 'nope'"):
        client.models.retrieve("nope")


@pytest.mark.parametrize("model", ["tiny", "tiny:base"])
def test_a_streamed_answer_is_the_whole_answer(client, model):
    settings = dict(model=model, messages=ASK, seed=3, max_tokens=40)
    whole = client.chat.completions.create(**settings)
    stream = list(client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
    assert text == whole.choices[0].message.content
    assert stream[-1].usage == whole.usage and stream[-1].choices == []
    assert [c.choices[0].finish_reason for c in stream if c.choices][-1] == whole.choices[0].finish_reason
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


def test_an_answer_is_the_models_own(client, llm):
    output = expected(llm, seed=5, max_tokens=30, thinking=True)
    reply = client.chat.completions.create(
        model="tiny", messages=ASK, seed=5, max_tokens=30, extra_body={"thinking": {"type": "enabled"}}
    )
    message = reply.choices[0].message
    assert message.reasoning_content == message.reasoning
    text = (message.reasoning_content or "") + message.content
    spoken = llm.tokenizer.decode(output.outputs[0].token_ids)
    assert "".join(text.split()) == "".join(spoken.split())
    assert reply.usage.prompt_tokens == len(output.prompt_token_ids)
    assert reply.usage.completion_tokens == len(output.outputs[0].token_ids)


def test_thinking_is_switched_budgeted_and_counted(client):
    def reply(**extra):
        return client.chat.completions.create(model="tiny", messages=ASK, seed=1, max_tokens=60, extra_body=extra)

    off = reply(thinking={"type": "disabled"})
    assert off.choices[0].message.reasoning_content is None
    assert off.usage.completion_tokens_details.reasoning_tokens == 0
    on = reply(thinking={"type": "enabled"}, thinking_budget=10)
    # Ten tokens of thought, then the border, which the model may come to before.
    assert 0 < on.usage.completion_tokens_details.reasoning_tokens <= 11
    assert on.choices[0].message.content and on.choices[0].message.reasoning_content
    assert reply(chat_template_kwargs={"enable_thinking": False}).choices == off.choices
    assert reply(reasoning_effort="none").choices == off.choices


def test_samples_are_several_and_streamed_apart(client):
    settings = dict(model="tiny", messages=ASK, seed=2, n=3, max_tokens=20)
    whole = client.chat.completions.create(**settings)
    texts = [choice.message.content for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1, 2] and len(set(texts)) == 3
    got = ["", "", ""]
    for chunk in client.chat.completions.create(**settings, stream=True):
        got[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert got == texts


def test_a_stop_text_ends_the_answer_and_is_not_shown(client):
    settings = dict(model="tiny", messages=ASK, seed=3, max_tokens=60)
    text = client.chat.completions.create(**settings).choices[0].message.content
    stop = text[20:23]
    assert len(stop) == 3
    for stream in (False, True):
        reply = client.chat.completions.create(**settings, stop=[stop, "never said"], stream=stream)
        parts = [c.choices[0] for c in reply] if stream else reply.choices
        said = "".join(c.delta.content or "" for c in parts) if stream else parts[0].message.content
        assert said.rstrip() == text[: text.index(stop)].rstrip()
        assert parts[-1].finish_reason == "stop"


def test_logprobs_are_the_models_and_streamed_alike(client, llm):
    output = expected(llm, seed=4, max_tokens=12, logprobs=2, thinking=False)
    settings = dict(model="tiny", messages=ASK, seed=4, max_tokens=12, logprobs=True, top_logprobs=2,
                    extra_body={"thinking": {"type": "disabled"}})  # fmt: skip
    entries = client.chat.completions.create(**settings).choices[0].logprobs.content
    assert [e.logprob for e in entries] == pytest.approx(output.outputs[0].logprobs[: len(entries)])
    for entry, top in zip(entries, output.outputs[0].top_logprobs, strict=False):
        assert sorted(t.logprob for t in entry.top_logprobs) == pytest.approx(sorted(top.values()))
        assert bytes(entry.bytes).decode(errors="replace") == entry.token
    streamed = [e for c in client.chat.completions.create(**settings, stream=True)
                for e in (c.choices[0].logprobs.content if c.choices[0].logprobs else [])]  # fmt: skip
    assert streamed == entries
    assert all(math.exp(entry.logprob) <= 1 for entry in entries)


def test_plain_completions(client, llm):
    params = SamplingParams(temperature=0.6, top_p=0.95, seed=7, max_tokens=15, logprobs=1)
    (output,) = llm.generate("How many", params)
    reply = client.completions.create(model="tiny", prompt="How many", seed=7, max_tokens=15, logprobs=1)
    choice = reply.choices[0]
    assert choice.text == output.outputs[0].text
    assert choice.logprobs.token_logprobs == pytest.approx(output.outputs[0].logprobs)
    assert "".join(choice.logprobs.tokens) == choice.text
    stream = client.completions.create(model="tiny", prompt="How many", seed=7, max_tokens=15, stream=True)
    assert "".join(c.choices[0].text for c in stream) == choice.text
    ids = llm.tokenizer.encode("How many")
    assert client.completions.create(model="tiny", prompt=ids, seed=7, max_tokens=15).choices[0].text == choice.text


def test_a_prompt_asked_again_is_found_in_the_cache(client):
    asked = [{"role": "user", "content": "Sort " + ", ".join(map(str, range(80)))}]
    first, second = (
        client.chat.completions.create(model="tiny", messages=asked, max_tokens=1).usage for _ in range(2)
    )
    assert first.prompt_cache_hit_tokens == 0 and first.prompt_cache_miss_tokens == first.prompt_tokens
    assert second.prompt_cache_hit_tokens >= 32 and second.prompt_tokens_details.cached_tokens >= 32
    assert second.prompt_cache_hit_tokens + second.prompt_cache_miss_tokens == second.prompt_tokens
    other = client.chat.completions.create(model="tiny", messages=asked, max_tokens=1, user="someone else").usage
    assert other.prompt_cache_hit_tokens == 0


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"messages": []}, 422, "messages"),
        ({"temperature": "hot"}, 422, "temperature"),
        ({"temperature": -1}, 422, "temperature"),
        ({"n": 10_000}, 422, "n"),
        ({"frequency": 1}, 422, "frequency"),
        ({"tools": [{"type": "function"}]}, 422, "tools"),
        ({"response_format": {"type": "json_object"}}, 422, "response_format.type"),
        ({"top_logprobs": 2}, 422, None),
        ({"stream": False, "stream_options": {"include_usage": True}}, 422, None),
        ({"model": "gpt-4"}, 404, "model"),
        ({"messages": [{"role": "assistant", "content": "I"}]}, 422, "messages"),
        ({"messages": [{"role": "user", "content": "why " * 4000}]}, 422, "messages"),
        ({"max_tokens": CONTEXT + 1}, 422, "max_tokens"),
        ({"max_completion_tokens": 100_000}, 422, "max_tokens"),
        ({"messages": [{"role": "tool", "content": "7"}]}, 422, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 422, None),
        ({"logit_bias": {"99999999": 1.0}}, 422, None),
        ({"logit_bias": {"5": 1e308}}, 422, "logit_bias.5"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(url, change, status, param):
    for stream in (False, True):
        body = {"model": "tiny", "messages": ASK, "stream": stream} | change
        reply = httpx.post(f"{url}/chat/completions", json=body)
        error = reply.json()["error"]
        assert reply.status_code == status, error
        assert set(error) == {"message", "type", "param", "code"} and "\n" not in error["message"]
        if param is not None:
            assert error["param"] == param


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"\xff\xfe{}", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"messages":[{"role":"user","content":"\\ud800"}]}', "application/json", 422),
        (b'{"messages":[{"role":"user","content":"x"}],"temperature":NaN}', "application/json", 422),
        (b"x=1", "application/x-www-form-urlencoded", 415),
        (b" " * 5_000_000, "application/json", 413),
    ],
)
def test_bad_bodies(url, content, kind, status):
    reply = httpx.post(f"{url}/v1/chat/completions", content=content, headers={"content-type": kind})
    assert reply.status_code == status and reply.json()["error"]["message"]


def test_a_body_that_does_not_say_its_length_is_cut_off(url):
    def endless():
        for _ in range(100):
            yield b" " * 100_000

    reply = httpx.post(f"{url}/v1/chat/completions", content=endless(), headers={"content-type": "application/json"})
    assert reply.status_code == 413


def running(url):
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("hadal_requests_running{"))


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_request(url, stream):
    async def leave():
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        settings = dict(model="tiny", messages=ASK, n=8, max_tokens=CONTEXT - 100, stream=stream, seed=1)
        task = asyncio.create_task(client.chat.completions.create(**settings))
        if stream:
            reply = await task
            async for _ in reply:
                break
            await reply.close()
        else:
            async with asyncio.timeout(10):
                while running(url) != 1:
                    await asyncio.sleep(0.02)
            task.cancel()
        await client.close()

    asyncio.run(leave())
    until(lambda: running(url) == 0, 3)


def test_too_many_are_turned_away_and_the_rest_served(url):
    codes = []

    def one():
        body = {"model": "tiny", "messages": ASK, "n": 8, "max_tokens": 50}
        codes.append(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code)

    threads = [threading.Thread(target=one) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(codes) == {200, 503} and codes.count(200) >= 4


def test_who_waits_is_kept_alive(run, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "KEEP_ALIVE", 0.1)
    with hadal_server(tmp_path / "h.db", models=[str(run)], max_running=1) as url:
        first = {"messages": ASK, "n": 8, "max_tokens": 40, "stream": True, "seed": 1}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=first, timeout=60) as busy:
            lines = busy.iter_lines()  # kept, as the stream is closed with it
            next(lines)
            second = {"messages": ASK, "max_tokens": 3, "seed": 2}
            text = httpx.post(f"{url}/v1/chat/completions", json=second | {"stream": True}, timeout=60).text
            reply = httpx.post(f"{url}/v1/chat/completions", json=second, timeout=60)
    assert text.startswith(": keep-alive") or "\n: keep-alive\n" in text
    assert text.endswith("data: [DONE]\n\n")
    assert reply.json()["usage"]["completion_tokens"] == 3  # empty lines before it are white space to JSON


@pytest.mark.parametrize("chat", [True, False])
def test_streams_go_on_while_a_huge_prompt_is_read(tmp_path, chat):
    run = make_run(tmp_path / "run", words=["strawberry", "x" * 4000])  # so that its size alone does not tell
    text = "strawberry 12 many\n" * 25_000
    prompt = {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
    body = json.dumps(prompt).encode()
    told = []
    with hadal_server(tmp_path / "h.db", models=[str(run)]) as url, httpx.Client(base_url=url, timeout=60) as client:
        client.get("/healthz")  # connects
        asked = {"messages": ASK, "n": 4, "max_tokens": 500, "stream": True, "seed": 1}

        def listen():
            with httpx.stream("POST", f"{url}/v1/chat/completions", json=asked, timeout=60) as reply:
                for line in reply.iter_lines():
                    told.append(line)

        listener = threading.Thread(target=listen)
        listener.start()
        until(lambda: len(told) > 20)
        before = len(told)
        path, kind = f"/v1/{'chat/' if chat else ''}completions", {"content-type": "application/json"}
        reply = client.post(path, content=body, headers=kind)
        assert len(told) - before >= 50
        listener.join(30)
    assert reply.status_code == 422 and reply.json()["error"]["param"] == ("messages" if chat else "prompt")
    assert f"at most {CONTEXT - 1} are read" in reply.json()["error"]["message"]


def test_a_prompt_is_read_once(run, tmp_path, monkeypatch):
    read = []
    chat = Tokenizer.chat
    monkeypatch.setattr(Tokenizer, "chat", lambda *args, **more: read.append(1) or chat(*args, **more))
    with hadal_server(tmp_path / "h.db", models=[str(run)]) as url, httpx.Client(base_url=url, timeout=30) as page:
        for stream in (False, True):
            page.post("/v1/chat/completions", json={"messages": ASK, "max_tokens": 2, "stream": stream})
        began = ask(page, settings={"max_tokens": 2})
        follow(page, began["answer"]["id"])
    assert len(read) == 3


def test_what_a_small_cache_or_the_server_cannot_give_is_refused_and_what_is_told_is_given(run, llm, tmp_path):
    said = []
    never_end = {str(i): -100 for i in llm.tokenizer.eos_ids}
    ask = {"messages": ASK, "logit_bias": never_end, "seed": 1}
    with hadal_server(tmp_path / "h.db", said.append, models=[str(run)], cache=100_000) as url:
        post = lambda **more: httpx.post(f"{url}/v1/chat/completions", json=ask | more, timeout=60)  # noqa: E731
        (card,) = [m for m in httpx.get(f"{url}/api/models").json()["models"] if m["id"] == "tiny"]
        assert card["context"] == card["max_tokens"] == 191
        assert "191 tokens, fewer than the 1,024 that the model reads." in said[0]
        whole = post().json()
        assert whole["choices"][0]["finish_reason"] == "length" and whole["usage"]["total_tokens"] == 191
        left = whole["usage"]["completion_tokens"]
        assert post(max_tokens=left).json()["usage"]["completion_tokens"] == left
        for wanted in (left + 1, 192, 1000):
            refused = post(max_tokens=wanted)
            assert refused.status_code == 422 and refused.json()["error"]["param"] == "max_tokens", wanted
    with hadal_server(tmp_path / "i.db", models=[str(run)], max_tokens=20) as url:
        assert post().json()["usage"]["completion_tokens"] == 20
        refused = post(max_tokens=21)
        assert refused.status_code == 422 and refused.json()["error"]["param"] == "max_tokens"
        assert "20 at most" in refused.json()["error"]["message"]


def test_metrics_count_what_was_done(url, client):
    def counter(name):
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    before = counter("hadal_completion_tokens_total"), counter("hadal_time_to_first_token_seconds_count")
    usage = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=9, seed=3).usage
    assert counter("hadal_completion_tokens_total") == before[0] + usage.completion_tokens
    assert counter("hadal_time_to_first_token_seconds_count") == before[1] + 1
    assert counter("hadal_cost_usd_total") > 0


def test_guessing_ahead_changes_no_token_and_is_counted(run, url, tmp_path):
    circle = {"messages": [{"role": "user", "content": "3 + 4 = 7 ; " * 8}], "temperature": 0, "max_tokens": 60}
    plain = httpx.post(f"{url}/v1/chat/completions", json=circle, timeout=60).json()
    with hadal_server(tmp_path / "h.db", models=[str(run)], speculate="ngram") as guessing:
        reply = httpx.post(f"{guessing}/v1/chat/completions", json=circle, timeout=60).json()
        lines = httpx.get(f"{guessing}/metrics").text.splitlines()
    assert reply["choices"] == plain["choices"] and plain["usage"]["completion_tokens"] > 10
    drafted, accepted = (
        max(float(line.split()[-1]) for line in lines if line.startswith(f"hadal_draft_tokens_{name}{{"))
        for name in ("total", "accepted_total")
    )
    assert drafted >= accepted > 0
    with pytest.raises(UserError, match="predicts a token ahead"):
        prepare(Settings(db=tmp_path / "other.db", models=[str(run)], speculate="mtp"), lambda line: None)


def test_health_and_the_openapi_document(url):
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
    document = httpx.get(f"{url}/openapi.json").json()
    assert "/v1/chat/completions" in document["paths"]
    fields = set(document["components"]["schemas"]["ChatRequest"]["properties"])
    assert {"messages", "thinking", "reasoning_effort", "logprobs", "stop", "seed", "n", "stream_options"} <= fields


def test_a_stream_ends_properly_when_the_server_closes(run, tmp_path):
    lines = []
    with hadal_server(tmp_path / "h.db", models=[str(run)]) as url:
        stream = {"model": "tiny", "messages": ASK, "n": 8, "stream": True, "max_tokens": CONTEXT - 100}
        began = threading.Event()

        def read():
            with httpx.stream("POST", f"{url}/v1/chat/completions", json=stream, timeout=30) as reply:
                for line in reply.iter_lines():
                    lines.append(line)
                    if len(lines) > 40:
                        began.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert began.wait(20)
    reader.join(20)
    data = [line.removeprefix("data: ") for line in lines if line]
    assert data[-1] == "[DONE]"
    reasons = [json.loads(line)["choices"][0]["finish_reason"] for line in data[:-1]]
    assert "insufficient_system_resource" in reasons[-8:]
