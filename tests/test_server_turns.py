"""What clients send in a second turn, and how a field that cannot be is named."""

import httpx
import openai
import pytest
from serving import QUESTION, hadal_server, make_run

ASK = {"role": "user", "content": QUESTION}
EMPTY = {"refusal": None, "annotations": None, "audio": None, "function_call": None, "tool_calls": None}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with hadal_server(folder / "h.db", models=[str(make_run(folder / "run"))], max_tokens=20) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30)


@pytest.mark.parametrize("thinking", ["enabled", "disabled"])
@pytest.mark.parametrize("kept", [{}, {"exclude_none": True}, {"exclude_unset": True}, {"mode": "json"}])
def test_a_message_of_openais_client_comes_back(client, thinking, kept):
    extra = {"thinking": {"type": thinking}}
    first = client.chat.completions.create(model="tiny", messages=[ASK], extra_body=extra).choices[0].message
    again = client.chat.completions.create(model="tiny", messages=[ASK, first.model_dump(**kept), ASK])
    plain = client.chat.completions.create(
        model="tiny", messages=[ASK, {"role": "assistant", "content": first.content}, ASK]
    )
    assert again.usage.prompt_tokens == plain.usage.prompt_tokens > 0
    as_it_is = client.chat.completions.create(model="tiny", messages=[ASK, first, ASK])
    assert as_it_is.usage.prompt_tokens == again.usage.prompt_tokens


# What litellm's and LangChain's messages hold beside role and content, and OpenAI's own in answers of other models.
TURNS = {
    "openai": EMPTY, "openai, of a search": {**EMPTY, "annotations": [{"type": "url_citation", "url_citation": {}}]},
    "litellm": {"tool_calls": None, "function_call": None, "provider_specific_fields": None},
    "litellm, with a thought": {
        "tool_calls": None, "function_call": None, "reasoning_content": "so",
        "provider_specific_fields": {"reasoning_content": "so", "refusal": None},
        "thinking_blocks": [{"type": "thinking", "thinking": "so", "signature": "x"}],
    },
    "litellm, of responses": {"reasoning_items": [{"type": "reasoning", "summary": []}], "images": None, "images_": []},
    "openrouter": {"reasoning": "so", "reasoning_details": [{"type": "reasoning.text", "text": "so"}], "refusal": None},
    "empty lists and texts": {"tool_calls": [], "annotations": [], "function_call": {}, "audio": "", "name": ""},
    "a name": {"name": "Ann"}, "something new": {"not_yet_known": None},
}  # fmt: skip


@pytest.mark.parametrize("turn", TURNS)
def test_what_clients_keep_of_an_answer_is_left_out(url, turn):
    def tokens(answer):
        reply = httpx.post(f"{url}/v1/chat/completions", json={"messages": [ASK, answer, ASK], "max_tokens": 1})
        assert reply.status_code == 200, reply.text
        return reply.json()["usage"]["prompt_tokens"]

    answer = {"role": "assistant", "content": "It is 3."}
    assert tokens(answer | TURNS[turn]) == tokens(answer)


def test_what_a_model_refused_is_what_it_said(url):
    def tokens(answer):
        body = {"messages": [ASK, {"role": "assistant"} | answer, ASK], "max_tokens": 1}
        return httpx.post(f"{url}/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"]

    assert tokens({"content": None, "refusal": "I will not."}) == tokens({"content": "I will not."})


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages.0.content.0.type",
         "messages.0.content.0.type is 'image_url', and must be 'text'."),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 7}]}]}, "messages.0.content.0.text",
         "messages.0.content.0.text must be a text."),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages.0.content.0",
         "messages.0.content.0 must be an object."),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content",
         "messages.0.content must be a text or a list."),
        ({"messages": [{"role": "user"}]}, "messages.0.content",
         "messages.0.content must be given in a message of role user."),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content",
         "messages.0.content must be given in a message of role user."),
        ({"messages": [{"role": "user", "content": []}]}, "messages.0.content",
         "messages.0.content must be given in a message of role user."),
        ({"messages": [ASK, {"role": "assistant", "content": None}, {"role": "system"}, ASK]}, "messages.2.content",
         "messages.2.content must be given in a message of role system."),
        ({"messages": [{"content": "x"}]}, "messages.0.role", "messages.0.role is missing."),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role",
         "messages.0.role is 'tool', and must be 'system', 'developer', 'user' or 'assistant'."),
        ({"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": [{"id": "x"}]}, ASK]},
         "messages.1.tool_calls", "messages.1.tool_calls is not honoured by this server. Leave it out."),
        ({"messages": "hi"}, "messages", "messages must be a list."),
        ({"messages": {}}, "messages", "messages must be a list."),
        ({"messages": ["hi"]}, "messages.0", "messages.0 must be an object."),
        ({"messages": []}, "messages", "messages must not be empty."),
        ({"stop": [""]}, "stop.0", "stop.0 must not be empty."), ({"stop": ""}, "stop", "stop must not be empty."),
        ({"stop": 7}, "stop", "stop must be a text or a list."),
        ({"stop": ["x", 7]}, "stop.1", "stop.1 must be a text."),
        ({"stop": ["x"] * 17}, "stop", "stop must be a text or a list of at most 16."),
        ({"max_tokens": "5"}, "max_tokens", "max_tokens must be a whole number."),
        ({"max_tokens": 0}, "max_tokens", "max_tokens must be 1 or more."),
        ({"max_tokens": 1.5}, "max_tokens", "max_tokens must be a whole number."),
        ({"temperature": -1}, "temperature", "temperature must be 0 or more."),
        ({"top_p": 0}, "top_p", "top_p must be more than 0."), ({"top_p": 2}, "top_p", "top_p must be 1 or less."),
        ({"stream": "yes"}, "stream", "stream must be true or false."),
        ({"model": 7}, "model", "model must be a text."),
        ({"logit_bias": {"a": 1}}, "logit_bias.a", "logit_bias.a must be a token id."),
        ({"logit_bias": {"5": "x"}}, "logit_bias.5", "logit_bias.5 must be a number."),
        ({"logit_bias": [5]}, "logit_bias", "logit_bias must be an object."),
        ({"tools": [{"type": "function"}]}, "tools", "tools must be empty: it is not honoured yet."),
        ({"thinking": True}, "thinking", "thinking must be an object."),
        ({"thinking": {"type": "on"}}, "thinking.type", "thinking.type is 'on', and must be 'enabled' or 'disabled'."),
        ({"response_format": {"type": "json_object"}}, "response_format.type",
         "response_format.type is 'json_object', and must be 'text'."),
        ({"functions": [{"name": "f"}]}, "functions", "functions is not honoured by this server. Leave it out."),
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_is_named_in_plain_words(url, change, param, said):
    for stream in (False, True):
        reply = httpx.post(f"{url}/v1/chat/completions", json={"messages": [ASK], "stream": stream} | change)
        assert reply.status_code == 422
        error = {"message": said, "type": "invalid_request_error", "param": param, "code": "invalid_parameters"}
        assert reply.json() == {"error": error}


SEVERAL = "prompt must be one text or the token ids of one: several are not honoured."


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (["a", "b"], SEVERAL), ([[1], [2]], SEVERAL), (["a"], SEVERAL), ({}, "prompt must be a text or a list."),
        ([], "prompt must not be empty."), ([1, "a"], "prompt.1 must be a whole number."),
        ([1, -1], "prompt.1 must be 0 or more."), (None, "prompt must be a text or a list."),
    ],
)  # fmt: skip
def test_a_prompt_that_cannot_be_is_named_in_plain_words(url, prompt, said):
    reply = httpx.post(f"{url}/v1/completions", json={"prompt": prompt})
    assert reply.status_code == 422 and reply.json()["error"]["message"] == said
    assert reply.json()["error"]["param"] == said.split()[0]


def test_queries_are_named_as_well(url):
    error = httpx.get(f"{url}/api/chats", params={"limit": "many"}).json()["error"]
    assert (error["message"], error["param"]) == ("limit must be a whole number.", "limit")
