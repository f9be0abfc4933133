"""What comes over the wire: addresses, hosts, methods and bodies as no client should send them."""

import json
import socket
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from serving import hadal_server, make_run, scripted

from hadal.server.app import PAGE
from hadal.server.chats import NewChat
from hadal.server.duels import NewDuel
from hadal.server.schemas import ChatRequest, CompletionRequest

SIZE = 300_000  # bytes of a body that this server takes


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with hadal_server(folder / "h.db", models=[str(make_run(folder / "run"))], max_body=SIZE) as url:
        yield url


def raw(url, data, patience=20.0):
    """The head and the rest of the answer to some bytes. patience: seconds after which no more is said to be sent."""
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=patience) as connection:
        connection.sendall(data)
        answer = b""
        try:
            while part := connection.recv(1 << 16):
                answer += part
        except TimeoutError:
            connection.shutdown(socket.SHUT_WR)
    head, _, rest = answer.partition(b"\r\n\r\n")
    return head, rest


def get(url, target=b"/v1/models", **headers):
    lines = {"Host": "127.0.0.1", "Connection": "close"} | headers
    spelled = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items()).encode("latin-1")
    head, rest = raw(url, b"GET " + target + b" HTTP/1.1\r\n" + spelled + b"\r\n")
    return int(head.split()[1]), rest


@pytest.mark.parametrize(
    "host", ["[::1", "::1]", "[", "[::1]]", "localhost]", "127.0.0.1:x", "a@127.0.0.1", "127.0.0.1/", "x%00", "\xff"]
)
def test_a_host_that_is_none_is_refused(url, host):
    assert get(url, Host=host)[0] == 403
    assert get(url, Origin=f"http://{host}")[0] == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "LOCALHOST:80", "localhost", "[::1]", "[::1]:8000", "127.8.8.8"])
def test_the_names_of_this_machine_are_served(url, host):
    assert get(url, Host=host)[0] == 200


def test_a_whole_address_names_what_its_path_does(url):
    assert get(url, b"http://127.0.0.1/v1/models", Host="x.example") == get(url)
    assert get(url, b"http://x.example/v1/models")[0] == 403
    assert get(url, b"http://[::1/v1/models")[0] == 403


@pytest.mark.parametrize(
    "target",
    [b"/%00", b"/assets/%00", b"/" + b"a" * 4000, b"/assets/" + b"a" * 4000, b"/" + b"a/" * 2000, b"/c/a/b", b"/%zz%ff",
     b"/api/chats/%00", b"/api/chats/" + b"a" * 4000, b"/api/answers/%00/events", b"/v1/models/%00", b"/index.htm",
     b"/assets/../index.html", b"/assets/%2e%2e/index.html", b"/.env", b"/nope", b"/v1", b"/v1/nope", b"/v2/models",
     b"/api/nope", b"//", b"/assets/", b"/v1/models/x/%0d%0a"],
)  # fmt: skip
def test_where_nothing_is_says_so(url, target):
    status, rest = get(url, target)
    assert status == 404
    error = json.loads(rest)["error"]
    assert error["code"] == "not_found" and len(error["message"]) <= 1000
    post, _ = raw(url, b"POST " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    known = any(part in target for part in (b"/api/chats", b"/api/answers", b"/v1/models"))  # as addresses
    assert post.split()[1] == (b"405" if known else b"404")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"), ("GET", "/chat/completions", "POST"), ("PUT", "/v1/models", "GET"),
        ("DELETE", "/v1/completions", "POST"), ("PUT", "/api/chats", "GET, POST, DELETE"), ("POST", "/healthz", "GET"),
        ("PUT", "/api/chats/x", "GET, PATCH, DELETE"), ("POST", "/", "GET, HEAD"), ("PUT", "/c/x", "GET, HEAD"),
        ("POST", "/manifest.webmanifest", "GET, HEAD"), ("GET", "/api/duels", "POST, DELETE"),
    ],
)  # fmt: skip
def test_a_method_that_is_not_for_an_address_says_which_are(url, method, path, allowed):
    reply = httpx.request(method, url + path)
    assert (reply.status_code, reply.headers["allow"]) == (405, allowed)
    assert reply.json()["error"]["code"] == "method_not_allowed"


def test_the_page_is_where_it_says_and_nowhere_else(url):
    page = (PAGE / "index.html").read_text()
    for path in ("/", "/c/abc", "/side-by-side", "/side-by-side/abc", "/index.html"):
        reply = httpx.get(url + path)
        assert reply.text == page and reply.headers["cache-control"] == "no-cache"
        assert httpx.head(url + path).status_code == 200
    asset = next(file.name for file in (PAGE / "assets").iterdir())
    assert "immutable" in httpx.get(f"{url}/assets/{asset}").headers["cache-control"]


def pieces(size):
    yield from (b" " * 100_000 for _ in range(size // 100_000))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chats", "/nope", "/"])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_that_is_too_large_is_read_to_its_end_and_refused(url, path, chunked):
    """`urllib` closes with every request: a server that answers before it has read everything resets it."""
    for size in (SIZE + 100_000, 20_000_000):
        body = pieces(size) if chunked else b" " * size
        request = urllib.request.Request(url + path, body, {"Content-Type": "application/json"}, method="POST")
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(request, timeout=60)
        reads = path not in ("/nope", "/")  # else only its length could tell
        expected = 413 if reads or not chunked else 404 if path == "/nope" else 405
        assert error.value.code == expected and json.loads(error.value.read())["error"]["message"]


def test_whoever_asks_first_is_told_before_it_sends(url):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n"
    assert raw(url, head)[0].startswith(b"HTTP/1.1 413")


JSON = {"content-type": "application/json"}
HALVES = ['"\\ud800"', '"a\\udc00b"', '["\\ud83e"]', '{"\\ud800": 1}']


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    ("method", "path", "field"),
    [
        ("POST", "/v1/chat/completions", "model"), ("POST", "/v1/completions", "prompt"),
        ("POST", "/api/chats", "model"), ("POST", "/api/chats", "title"), ("PUT", "/api/preferences", "x"),
        ("POST", "/api/duels", "question"), ("POST", "/api/session", "key"), ("POST", "/api/import", "hadal_chats"),
    ],
)  # fmt: skip
def test_half_a_character_is_refused_everywhere(url, method, path, field, half):
    reply = httpx.request(method, url + path, content=f'{{"{field}": {half}}}', headers=JSON)
    assert reply.status_code == 422 and "half of a character" in reply.json()["error"]["message"]


def test_half_a_character_does_not_reach_an_upstream(tmp_path):
    whole = '{"messages":[{"role":"user","content":"\\ud83e\\udd91"}]}'
    with scripted([{"content": "7"}, {"finish_reason": "stop"}]) as (below, got):
        with hadal_server(tmp_path / "h.db", upstreams=[f"up={below}"]) as url:
            for stream in ("true", "false"):
                body = f'{{"messages":[{{"role":"user","content":"\\ud800"}}],"stream":{stream}}}'
                reply = httpx.post(f"{url}/v1/chat/completions", content=body, headers=JSON)
                assert reply.status_code == 422
            httpx.post(f"{url}/v1/chat/completions", content=whole, headers=JSON)
    assert [body["messages"][0]["content"] for body in got] == ["🦑"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "/api/preferences", '{"x":NaN}', 422), ("PUT", "/api/preferences", '{"x":1e999}', 422),
        ("PUT", "/api/preferences", "7", 400), ("POST", "/api/import", '{"hadal_chats":' + "1" * 5000 + "}", 400),
        ("POST", "/api/import", "[" * 100_000, 400), ("POST", "/v1/completions", '{"seed":' + "1" * 5000 + "}", 400),
        ("POST", "/api/import", b"\xef\xbb\xbf{}", 422), ("POST", "/v1/completions", b"\xef\xbb\xbf{}", 422),
        ("POST", "/v1/completions", '"x"', 400), ("POST", "/v1/completions", "[]", 400),
        ("POST", "/v1/completions", b'{"prompt":"\xed\xa0\x80"}', 400),
    ],
)  # fmt: skip
def test_a_body_that_cannot_be_is_told(url, method, path, body, status):
    reply = httpx.request(method, url + path, content=body, headers=JSON)
    assert reply.status_code == status and reply.json()["error"]["message"], reply.text


def test_of_a_file_with_a_chat_that_is_none_no_chat_is_taken(url):
    good = {"title": "taken?", "messages": [{"id": "a", "role": "user", "content": "x"}]}
    file = {"hadal_chats": 1, "chats": [good, {"messages": [{"id": "a", "parent": "b", "role": "user"}]}]}
    assert httpx.post(f"{url}/api/import", json=file).status_code == 422
    assert httpx.get(f"{url}/api/chats", params={"q": "taken?"}).json()["chats"] == []


MANY = {f"k{i}": 1 for i in range(20_000)}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (ChatRequest, {"messages": [{"role": "user", "content": "x"}], **MANY}),
        (ChatRequest, {"messages": [{"role": "user", "content": "x", **MANY}]}),
        (ChatRequest, {"messages": [{"role": "user", "content": [1] * 20_000}]}),
        (ChatRequest, {"messages": [{"role": "user", "content": "x"}], "logit_bias": MANY}),
        (CompletionRequest, {"prompt": ["a"] * 20_000}), (CompletionRequest, {"prompt": [1] + ["a"] * 20_000}),
        (NewChat, MANY), (NewChat, {"settings": MANY}), (NewDuel, {"models": [1] * 20_000}),
    ],
)  # fmt: skip
def test_a_body_with_many_faults_is_told_few(kind, body):
    """Each fault is an object to make, which takes the event loop seconds where there are a million."""
    with pytest.raises(ValidationError) as error:
        kind.model_validate(body)
    assert error.value.error_count() < 10


METHODS = st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "get", "X"])
PLACES = ["/", "/v1/models", "/v1/chat/completions", "/api/chats", "/api/import", "/api/answers/x/events", "/c/"]
TARGETS = st.one_of(
    st.builds(lambda place, tail: place.encode() + tail, st.sampled_from(PLACES), st.binary(max_size=20)),
    st.sampled_from([b"*", b"http://", b"http://[::1/", b"http://127.0.0.1", b"127.0.0.1:80", b"//x", b"/%", b"/?%"]),
)
NAMES = ["Host", "Origin", "Cookie", "Authorization", "Content-Type", "Content-Length", "Transfer-Encoding", "Expect",
         "Last-Event-ID", "Range", "If-None-Match", "Sec-Fetch-Site", "Connection", "X"]  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(["127.0.0.1", "[::1", "chunked", "100-continue", "application/json", "-1", "9", "²", "bytes=9-1"]),
    st.text(st.characters(max_codepoint=255), max_size=20),
)


HEADERS = st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=4)


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(METHODS, TARGETS, HEADERS, st.booleans(), st.binary(max_size=40))
@example("GET", b"/", [("Host", "[::1")], False, b"")
@example("GET", b"/assets/%00", [], True, b"")
def test_no_bytes_make_the_server_fail(url, caplog, method, target, headers, host, body):
    lines = [("Host", "127.0.0.1"), ("Connection", "close")] * host + headers
    spelled = "".join(f"{name}: {value}\r\n" for name, value in lines).encode("latin-1")
    head, _ = raw(url, method.encode() + b" " + target + b" HTTP/1.1\r\n" + spelled + b"\r\n" + body, patience=0.1)
    assert not head or int(head.split()[1]) < 500, head
    assert not [record for record in caplog.records if record.exc_info]
