"""Upstreams: a scripted server that does what users report of others, and hadal itself as an upstream of hadal."""

import json

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import QUESTION, ask, follow, hadal_server, make_run, scripted

from hadal.errors import UserError
from hadal.server.launch import Settings, prepare
from hadal.server.upstream import _Reader

STOP = {"finish_reason": "stop"}

# Each fault that users report of reasoning text (vllm#43933 and #48645, llama.cpp#11325, #12107, #14679, #14894 among
# them): the deltas of the stream, then the thought and the answer that a reader must find in them.
FAULTS = {
    "the field of DeepSeek": ([{"reasoning_content": "a b"}, {"content": "7"}, STOP], "a b", "7"),
    "the field of vLLM and Ollama": ([{"reasoning": "a b"}, {"content": "7"}, STOP], "a b", "7"),
    "both fields at once": ([{"reasoning": "a b", "reasoning_content": "a b"}, {"content": "7"}, STOP], "a b", "7"),
    "tags in the content": ([{"content": "<think>a b</think>7"}, STOP], "a b", "7"),
    "a tag cut into pieces": ([{"content": c} for c in "<think>a b</think>7"] + [STOP], "a b", "7"),
    "another tag": ([{"content": "<thinking>a b</thin"}, {"content": "king>7"}, STOP], "a b", "7"),
    "Mistral's tag": ([{"content": "[THINK]a b[/THINK]7"}, STOP], "a b", "7"),
    "no opening tag": ([{"content": "a b"}, {"content": " </think>\n\n7"}, STOP], "a b", "7"),
    "no closing tag": ([{"content": "<think>a b and on"}, {"finish_reason": "length"}], "a b and on", ""),
    "thought and answer in one chunk": ([{"reasoning_content": "a b", "content": "7"}, STOP], "a b", "7"),
    "end of thought and answer in one chunk": ([{"content": "<think>a"}, {"content": " b</think>7"}, STOP], "a b", "7"),
    "tags in a code fence of the answer": (
        [{"content": "<think>a b</think>Use\n```\n<think>x</think>\n```\nso."}, STOP],
        "a b", "Use\n```\n<think>x</think>\n```\nso.",
    ),
    "tags in a code fence of the thought": (
        [{"content": "<think>a\n```\n</think>\n```\nb</think>7"}, STOP], "a\n```\n</think>\n```\nb", "7"),
    "an answer that speaks of the tag": (
        [{"content": "<think>a b</think>"}, {"content": "A </think> ends it, or `</think>`."}, STOP],
        "a b", "A </think> ends it, or `</think>`.",
    ),
    "one whose thought came in a field": (
        [{"reasoning_content": "a b"}, {"content": "A </think> ends it."}, STOP], "a b", "A </think> ends it."),
    "another end within a thought": ([{"content": "<thinking>a </think> b</thinking>7"}, STOP], "a </think> b", "7"),
    "thoughts in a field and in tags": (
        [{"reasoning": "a "}, {"reasoning": "b \n"}, {"content": "<think>c</think>7"}, STOP], "a b\n\nc", "7"),
    "an empty thought": ([{"content": "<think>\n\n</think>\n\n7"}, STOP], None, "7"),
    "an empty field": ([{"reasoning_content": ""}, {"reasoning_content": None, "content": "7"}, STOP], None, "7"),
    "halves of a character": ([{"content": "7 \ud83e"}, {"content": "\udd91!"}, STOP], None, "7 🦑!"),
    "an end token that leaks": ([{"content": "7"}, {"content": "<｜end▁of▁sentence｜>"}, STOP], None, "7"),
    "content as null": ([{"role": "assistant", "content": None}, {"content": "7"}, STOP], None, "7"),
    "a less-than sign at the end": ([{"content": "3 <"}, STOP], None, "3 <"),
}  # fmt: skip


def read(deltas, may_move):
    """What someone has who follows the deltas, and what is told in the end."""
    reader = _Reader(0, raw=False, may_move=may_move)
    shown = {"thought": "", "answer": ""}
    events = []
    for delta in deltas:
        delta = dict(delta)
        reason = delta.pop("finish_reason", None)
        events += reader.read({"delta": delta, "finish_reason": reason})
    *events, end = events + reader.finish()
    for event in events:
        if event.kind == "moved":
            assert may_move
            shown = {"thought": event.text, "answer": ""}
        else:
            shown[event.kind] += event.text
    assert (shown["thought"] or None, shown["answer"]) == (end.thought, end.answer)
    return end.thought, end.answer


@pytest.mark.parametrize("fault", FAULTS)
def test_thoughts_are_found_wherever_they_stand(fault):
    deltas, thought, answer = FAULTS[fault]
    assert read(deltas, may_move=True) == (thought, answer)
    if fault == "no opening tag":  # a stream of the API could not take it back, so that it stays as it was sent
        thought, answer = None, "a b </think>\n\n7"
    assert read(deltas, may_move=False) == (thought, answer)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(["<think>", "</think>", "</thinking>", "[/THINK]", "a", " b", "\n", "\n```\n", "<", "`"])),
    st.lists(st.integers(0, 200), max_size=6), st.booleans(), st.booleans(),
)  # fmt: skip
def test_a_stream_tells_the_same_however_it_is_cut(parts, cuts, field, may_move):
    text = "".join(parts)
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    pieces = [{"content": text[i:j]} for i, j in zip(places, places[1:], strict=False)]
    begin = [{"reasoning": "so "}] if field else []
    assert read([*begin, *pieces, STOP], may_move) == read([*begin, {"content": text}, STOP], may_move)
    if field and not text.lstrip().startswith("<think>"):
        assert read([*begin, *pieces, STOP], may_move) == ("so", text.strip())


def one(url, tmp_path, **more):
    """A chat with the first model of an upstream: the message in the end."""
    with hadal_server(tmp_path / "h.db", upstreams=[f"up={url}"], timeout=2.0) as server:
        with httpx.Client(base_url=server, timeout=30) as client:
            began = ask(client, **more)
            events = follow(client, began["answer"]["id"])
            plain = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]})
            models = client.get("/api/models").json()
    return events[-1][2]["message"], plain, models


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_characters_cut_by_the_network_come_whole(tmp_path, cut):
    line = 'data: {"choices":[{"index":0,"delta":{"content":"π 中 🦑"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    data = line.encode()
    pieces = [data[i : i + cut] for i in range(0, len(data), cut)]
    with scripted(raw=pieces) as (url, _):
        message, plain, _ = one(url, tmp_path)
    assert message["content"] == "π 中 🦑" == plain.json()["choices"][0]["message"]["content"]


def test_an_answer_of_an_upstream_has_its_counts_price_and_switches(tmp_path):
    usage = {"prompt_tokens": 10, "completion_tokens": 6, "prompt_cache_hit_tokens": 4,
             "completion_tokens_details": {"reasoning_tokens": 5}}  # fmt: skip
    chunks = [{"reasoning_content": "so it is"}, {"content": "7"}, {"finish_reason": "stop"}]
    raw = [f"data: {json.dumps({'choices': [{'index': 0, 'delta': c}]})}\n\n".encode() for c in chunks[:2]]
    raw += [b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
            f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode()]  # fmt: skip
    with scripted(raw=raw, models=[{"id": "r1", "owned_by": "deepseek"}]) as (url, got):
        served = hadal_server(tmp_path / "h.db", upstreams=[f"up={url}"], prices=["r1=0.14,0.55,2.19"])
        with served as server, httpx.Client(base_url=server, timeout=30) as client:
            settings = {"thinking": True, "effort": "high", "temperature": 0.5, "system": "Be brief."}
            began = ask(client, settings=settings)
            message = follow(client, began["answer"]["id"])[-1][2]["message"]
            messages = [{"role": "user", "content": QUESTION}]
            body = {"model": "up/r1", "messages": messages, "thinking": {"type": "disabled"}}
            reply = client.post("/v1/chat/completions", json=body).json()
    assert message["thought"] == "so it is" and message["content"] == "7" and message["model"] == "up/r1"
    assert message["usage"]["prompt_cache_hit_tokens"] == 4 and message["usage"]["reasoning_tokens"] == 5
    assert message["cost"]["usd"] == pytest.approx((4 * 0.14 + 6 * 0.55 + 6 * 2.19) / 1e6)
    assert got[0]["thinking"] == {"type": "enabled"} and got[0]["reasoning_effort"] == "high"
    assert got[0]["temperature"] == 0.5 and got[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert got[1]["thinking"] == {"type": "disabled"} and "temperature" not in got[1]
    assert reply["choices"][0]["message"]["reasoning_content"] == "so it is"
    assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == 5


@pytest.mark.parametrize(
    ("scenario", "said", "status"),
    [
        ({"status": 500}, "answers 500: no such luck", 502),
        ({"status": 401}, "UP_API_KEY", 502),
        ({"status": 429}, "no such luck", 429),
        ({"kind": "text/html", "raw": [b"<html>"]}, "text/html in place of an event stream", 502),
        ({"raw": [b"data: {junk\n\n"]}, "not a chunk of an answer", 502),
        ({"raw": [b"data: " + b"[" * 50_000 + b"\n\n"]}, "not a chunk of an answer", 502),
        ({"raw": [b'data: {"choices":[{"index":7,"delta":{}}]}\n\n']}, "not asked for", 502),
        ({"raw": [b'data: {"choices":7}\n\n']}, "not a chunk of an answer", 502),
        ({"raw": [b'data: {"choices":[{"logprobs":{"content":[7]}}]}\n\n']}, "not a chunk of an answer", 502),
        ({"raw": [b'data: {"choices":[{"logprobs":{"tokens":7}}]}\n\n']}, "not a chunk of an answer", 502),
        ({"raw": [b'data: {"choices":[{"logprobs":{"content":[{"token":"a","logprob":NaN}]}}]}\n\n']}, "a chunk", 502),
        ({"raw": [b'data: {"choices":[{"delta":"x"}]}\n\n']}, "broke off in the middle", 502),
        ({"raw": [b'data: {"error":{"message":"out of memory"}}\n\n']}, "out of memory", 502),
        ({"chunks": [{"content": "I begin"}]}, "broke off in the middle", 502),
        pytest.param({"chunks": [{"content": "a"}, STOP], "pause": 3.0}, "too slow", 502, marks=pytest.mark.long),
    ],
)
def test_what_goes_wrong_upstream_is_said_in_one_line(tmp_path, scenario, said, status):
    with scripted(**scenario) as (url, _):
        message, plain, _ = one(url, tmp_path)
    assert message["status"] == "failed" and said in message["error"] and "\n" not in message["error"]
    assert plain.status_code == status and said in plain.json()["error"]["message"]
    if scenario.get("chunks") and not scenario.get("pause"):
        assert message["content"] == "I begin"


def test_an_upstream_that_is_down_is_told_and_the_others_serve(tmp_path):
    told = []
    with scripted([{"content": "7"}, STOP]) as (url, _):
        served = hadal_server(tmp_path / "h.db", upstreams=[f"up={url}", "down=http://127.0.0.1:9/v1"], say=told.append)
        with served as server, httpx.Client(base_url=server, timeout=30) as client:
            assert told[:1] == ["hadal: down cannot be reached at http://127.0.0.1:9/v1."]
            models = client.get("/api/models").json()
            assert [u["ok"] for u in models["upstreams"]] == [True, False] and len(models["models"]) == 1


@pytest.mark.parametrize("models", ["<html>", "{}", '{"data": 7}', "[" * 90_000])
def test_a_list_of_models_that_is_none(tmp_path, models):
    with scripted(models=models) as (url, _), pytest.raises(UserError, match="something that is not a list of models"):
        prepare(Settings(upstreams=[url], db=tmp_path / "h.db"), lambda line: None)


ECHO = [{"content": "<think>w</think>A </think> ends it."}, STOP]


@pytest.mark.parametrize("chunks", [ECHO, [{"content": "A </think> ends it."}, STOP]])
def test_a_stream_and_a_whole_reply_hold_the_same(tmp_path, chunks):
    with scripted(chunks) as (url, _), hadal_server(tmp_path / "h.db", upstreams=[f"up={url}"]) as server:
        client = openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)
        asked = dict(model="r1", messages=[{"role": "user", "content": "x"}])
        message = client.chat.completions.create(**asked).choices[0].message
        deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
    assert message.content == "A </think> ends it." == "".join(delta.content or "" for delta in deltas)
    thought = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert thought == (message.reasoning_content or "") == ("w" if chunks is ECHO else "")


@pytest.mark.parametrize("stream", [False, True])
def test_several_samples_of_a_server_that_gives_one(tmp_path, stream):
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":4}}\n\ndata: [DONE]\n\n'
    raw = [b'data: {"choices":[{"index":0,"delta":{"content":"7"},"finish_reason":"stop"}]}\n\n', usage]
    with scripted(raw=raw) as (url, got), hadal_server(tmp_path / "h.db", upstreams=[f"up={url}"]) as server:
        client = openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)
        asked = dict(model="r1", messages=[{"role": "user", "content": "x"}], n=3, seed=5)
        if stream:
            chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
            told = [(c.choices[0].index, c.choices[0].delta.content) for c in chunks if c.choices]
            assert sorted(one for one in told if one[1]) == [(0, "7"), (1, "7"), (2, "7")]
            spent = chunks[-1].usage
        else:
            reply = client.chat.completions.create(**asked)
            assert [choice.message.content for choice in reply.choices] == ["7"] * 3
            spent = reply.usage
    assert [body.get("n") for body in got] == [3, 2, None] and len({body["seed"] for body in got}) == 3
    assert (spent.prompt_tokens, spent.completion_tokens) == (30, 12)


def test_hadal_serves_hadal(tmp_path):
    run = make_run(tmp_path / "run")
    with hadal_server(tmp_path / "a.db", models=[str(run)]) as below:
        with hadal_server(tmp_path / "b.db", upstreams=[f"below={below}/v1"]) as above:
            body = {"model": "tiny", "messages": [{"role": "user", "content": QUESTION}], "seed": 4, "max_tokens": 30,
                    "thinking": {"type": "enabled"}, "logprobs": True, "n": 2}  # fmt: skip
            direct = httpx.post(f"{below}/v1/chat/completions", json=body, timeout=30).json()
            through = httpx.post(f"{above}/v1/chat/completions", json=body, timeout=30).json()
            assert through["choices"] == direct["choices"] and through["model"] == "below/tiny"
            assert through["usage"]["completion_tokens"] == direct["usage"]["completion_tokens"]
            text = {"model": "below/tiny", "prompt": "How many", "seed": 4, "max_tokens": 9}
            plain = httpx.post(f"{above}/v1/completions", json=text, timeout=30).json()
            below_plain = httpx.post(f"{below}/v1/completions", json=text | {"model": "tiny"}, timeout=30).json()
            assert plain["choices"] == below_plain["choices"]
            refused = httpx.post(f"{above}/v1/chat/completions", json=body | {"temperature": 1000}, timeout=30)
            assert refused.status_code == 422
