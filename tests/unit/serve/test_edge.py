"""The server at the level of bytes: malformed and endless requests, too many connections, and shutdown."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers
from support.served import CHAT, models_folder
from support.server_process import ServerProcess, body, received, server_process, status

from pellucid.errors import InvalidRequest
from pellucid.measure.server_load import key_headers
from pellucid.serve.guard import HOST, AccessRules
from pellucid.testing import random_model

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits and signals of POSIX")
RECEIVE, FILES, MANY = 1.0, 256, 400
GET = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
POST = b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models_folder(tmp_path_factory.mktemp("edge"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    with server_process(folder / "one", "--read-timeout", str(RECEIVE)) as made:
        yield made
        assert status(made.ask(GET)) == 200, "it goes on"
        lines = [line for line in made.said if not line.startswith("serving ")]
    assert not lines, lines  # malformed requests write nothing to the log


ODD = [
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://a\r\nAccess-Control-Request-Method: GET\r\n",
    b"GET * HTTP/1.1\r\nHost: [\r\n",
    b"PRI * HTTP/2.0\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n",
    b"GET / HTTP/2.0\r\nHost: 127.0.0.1\r\n",
    b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n",
    b"CONNECT /health HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    b"GET ?x HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    b"GET  HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    b"GET http://127.0.0.1/health HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    b"GET //127.0.0.1:99999999/ HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    b"GET /health HTTP/1.1\r\nHost: evil.com@127.0.0.1\r\n",
    b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:80:90\r\n",
    b"GET /health HTTP/1.1\r\nHost: [::1\r\n",
    b"GET /health HTTP/1.1\r\nHost: 127.0.0.1/a\r\n",
    b"GET /health HTTP/1.1\r\nHost: a\xff\r\n",
    b"GET /health HTTP/1.1\r\n",
    b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n",
    b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://[\r\n",
    b"GET /%00%ff/.. HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    b"GET /v1/models/%2e%2e%2f HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    b"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]


@pytest.mark.parametrize("lines", ODD)
def test_what_is_no_request_is_refused(server: ServerProcess, lines: bytes) -> None:
    answer = server.ask(lines.rstrip(b"\r\n") + b"\r\nConnection: close\r\n\r\n")
    assert 400 <= status(answer) < 500, answer
    json.loads(body(answer).partition(b"HTTP/1.1 ")[0])


BODY = b"POST /api/show HTTP/1.1\r\nHost: 127.0.0.1\r\n"
CHUNKED = BODY + b"Transfer-Encoding: chunked\r\n"
JSON = b'12\r\n{"model": "one"}  \r\n'
AMBIGUOUS = {
    "LF after the request's line": b"GET /health HTTP/1.1\nHost: 127.0.0.1\r\n\r\n",
    "LF after a header": b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\nX: a\r\n\r\n",
    "LF alone": b"GET /health HTTP/1.1\nHost: 127.0.0.1\n\n",
    "LF before the empty line": b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\n\r\n",
    "LF as the empty line": b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\n",
    "LF before the request": b"\n" + GET,
    "CR in a header": b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX: a\rY: b\r\n\r\n",
    "a folded line": b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX: a\r\n b\r\n\r\n",
    "a folded length": BODY + b"Content-Length:\r\n\t2\r\n\r\n{}",
    "a folded coding": BODY + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + JSON + b"0\r\n\r\n",
    "a space before a colon": BODY + b"Content-Length : 2\r\n\r\n{}",
    "two lengths": BODY + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
    "two lengths in a header": BODY + b"Content-Length: 2, 3\r\n\r\n{} ",
    "a signed length": BODY + b"Content-Length: +2\r\n\r\n{}",
    "a length and a coding": CHUNKED + b"Content-Length: 2\r\n\r\n" + JSON + b"0\r\n\r\n",
    "a coding and a length": BODY + b"Content-Length: 25\r\nTransfer-Encoding: chunked\r\n\r\n" + JSON + b"0\r\n\r\n",
    "two codings": BODY + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + JSON + b"0\r\n\r\n",
    "a coding twice": CHUNKED + b"Transfer-Encoding: chunked\r\n\r\n" + JSON + b"0\r\n\r\n",
    "an unknown coding": BODY + b"Transfer-Encoding: identity\r\n\r\n",
    "a coding in HTTP/1.0": CHUNKED.replace(b"1.1", b"1.0") + b"\r\n" + JSON + b"0\r\n\r\n",
    "a coding in HTTP/0.9": CHUNKED.replace(b"1.1", b"0.9") + b"\r\n" + JSON + b"0\r\n\r\n",
    "LF after a chunk's size": CHUNKED + b"\r\n" + JSON.replace(b"12\r\n", b"12\n") + b"0\r\n\r\n",
    "CR in a chunk's extension": CHUNKED + b"\r\n" + JSON.replace(b"12", b"12;a\rb") + b"0\r\n\r\n",
    "LF after a chunk": CHUNKED + b'\r\n12\r\n{"model": "one"}  \n0\r\n\r\n',
    "LF as the end of the trailer": CHUNKED + b"\r\n" + JSON + b"0\r\n\n",
    "LF in the trailer": CHUNKED + b"\r\n" + JSON + b"0\r\nX: a\nY: b\r\n\r\n",
    "a folded trailer": CHUNKED + b"\r\n" + JSON + b"0\r\nX: a\r\n b\r\n\r\n",
}
"""Requests whose end, or whose number, other programs may see elsewhere (request smuggling)."""


@pytest.mark.parametrize("before", [b"", GET.replace(b"Connection: close\r\n", b"")], ids=["first", "second"])
@pytest.mark.parametrize("request_", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_an_ambiguous_request_is_refused_and_the_connection_closed(
    server: ServerProcess, request_: bytes, before: bytes
) -> None:
    with server.connect(before + request_ + GET) as one:
        found = received(one)  # until the server closes
    assert re.findall(rb"HTTP/1.1 (\d+) ", found) == [b"200"] * bool(before) + [b"400"], found


def test_a_chunked_request_is_read(server: ServerProcess) -> None:
    whole = CHUNKED + b"\r\n" + JSON.replace(b"12", b"12;a=b") + b"0\r\nX: a\r\n\r\n"
    with server.connect(whole + GET) as one:
        found = received(one)
    assert found.count(b"HTTP/1.1 200") == 2, found


@pytest.mark.parametrize(
    ("path", "form"),
    [("/v1/chat/completions", "invalid_request_error"), ("/v1/messages", "request_too_large"), ("/api/chat", "")],
)
def test_a_body_that_is_declared_too_long_is_refused_before_it_arrives(
    server: ServerProcess, path: str, form: str
) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n" % (path.encode(), (16 << 20) + 1)
    for expect in (b"", b"Expect: 100-continue\r\n"):
        with server.connect(head + expect + b"\r\n") as one:
            answer = b""
            while not answer.endswith(b"}"):
                answer += one.recv(1 << 16)
        assert (status(answer), form in answer.decode()) == (413, True), answer
        assert b"longer than 16 MiB" in answer
    # A client that sends the whole body before it reads gets the answer too, and keeps its connection.
    with httpx.Client(base_url=server.url) as client:
        for content in (b" " * (17 << 20), iter([b" " * (1 << 20)] * 17)):
            assert client.post(path, content=content).status_code == 413
        assert client.get("/health").status_code == 200


TOKENS = st.sampled_from(b"GET POST OPTIONS CONNECT PRI HEAD TRACE get X-Y G\x00T".split())
TARGETS = st.one_of(
    st.sampled_from(
        b"/ /health * ? /v1/chat/completions /api/chat /v1/messages /web/a http://a/ a:1 // /v1/models/a/b "
        b"/look/models/% /v1/requests/%2F/trace".split()
    ),
    st.binary(max_size=20),
    st.text(max_size=9).map(str.encode).map(lambda tail: b"/" + tail),
)
NAMES = (
    b"Host Origin Content-Length Transfer-Encoding Expect Upgrade Accept Connection Authorization X-Request-Id "
    b"Last-Event-ID Sec-Fetch-Site".split()
)
VALUES = (
    b"127.0.0.1 [ a@127.0.0.1 0 5 -1 chunked gzip upgrade websocket h2c 100-continue a:1:2 cross-site null http://[ "
    b"text/html x:99999999999".split()
)
HEADERS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(NAMES), st.one_of(st.sampled_from(VALUES), st.binary(max_size=12))),
        st.tuples(st.binary(max_size=8), st.binary(max_size=8)),
    ),
    max_size=4,
)
VERSIONS = st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"http/1.1", b"", b"HTTP/1.1.1"])


@given(TOKENS, TARGETS, VERSIONS, HEADERS, st.sampled_from([b"", b"{}", b"5\r\n{}\r\n", b"\r\n\r\n", b"\xff" * 9]))
@settings(max_examples=300)
def test_no_bytes_break_the_edge(
    server: ServerProcess, method: bytes, target: bytes, version: bytes, headers: list[tuple[bytes, bytes]], rest: bytes
) -> None:
    head = b" ".join([method, target, version]) + b"\r\n" + b"".join(b"%s: %s\r\n" % one for one in headers)
    with server.connect(head + b"\r\n" + rest) as one:
        one.shutdown(socket.SHUT_WR)
        found = received(one)
    assert status(found) < 500, found
    assert b"Internal Server Error" not in found


@given(st.text("abc019.:[]@/%\\ é_-", max_size=12))
def test_a_host_is_a_name_or_an_address_with_a_port(host: str) -> None:
    """Hosts that match the expression are valid for a client too (httpx)."""
    if HOST.fullmatch(host) and "[" not in host:
        name, _, port = host.partition(":")
        assert not set("@/%\\[] é") & set(host)
        if not port or int(port) < 65536:
            assert httpx.Headers({"host": host})["host"] == host
            assert name.strip("._-") == "" or httpx.URL(f"http://{host.replace('_', '-')}/").host


def test_connections_that_ask_nothing_stop_nobody(folder: Path) -> None:
    """More connections than the process may have descriptors, each with the beginning of a request."""
    parts = (b"", b"GET /health HTTP/1.1\r\nHost:", b"POST ")
    with server_process(folder / "one", files=FILES) as server:
        half = [server.connect(parts[number % len(parts)]) for number in range(MANY)]
        try:
            for _ in range(3):
                assert status(server.ask(GET)) == 200
            asked = {"model": "one", "prompt": "a", "max_tokens": 3}
            assert httpx.post(server.url + "/v1/completions", json=asked, timeout=60).status_code == 200
            assert status(received(half[0])) == 503, "the oldest has made way"
        finally:
            for one in half:
                one.close()
        lines = [line for line in server.said if not line.startswith("serving ")]
    assert len(lines) == 1, lines
    assert "may open 256 files, enough for" in lines[0]


def test_a_request_that_does_not_come(server: ServerProcess) -> None:
    for part in (b"", b"GET /health HTTP/1.1\r\nHost:"):
        answer = server.ask(part)
        assert status(answer) == 408
        assert "--read-timeout" in json.loads(body(answer))["error"]["message"]


@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/messages", b"/api/chat", b"/look/trace"])
def test_a_body_that_does_not_come(server: ServerProcess, path: bytes) -> None:
    answer = server.ask(POST % path + b'{"model": ')
    assert status(answer) == 408
    error = json.loads(body(answer))
    assert "--read-timeout" in (error["error"] if path == b"/api/chat" else error["error"]["message"])
    assert ("type" in error) == (path == b"/v1/messages")


def test_bytes_that_drip(server: ServerProcess) -> None:
    """Slow headers, a slow body and an unread body: each connection is closed although bytes keep arriving."""
    begun = [
        b"GET /health HTTP/1.1\r\nX: ",
        POST % b"/v1/completions",
        b"POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n",
    ]
    for data in begun:
        with server.connect(data) as one:
            end, is_open = time.monotonic() + 20 * RECEIVE, True
            while is_open and time.monotonic() < end:
                try:
                    one.sendall(b"x")
                except OSError:  # reset, broken pipe
                    is_open = False
                time.sleep(0.05)
            assert not is_open


def test_connections_that_are_all_used(folder: Path) -> None:
    with server_process(folder / "one", "--connections", "3", "--read-timeout", "3") as server:
        asked = [server.connect(POST % b"/v1/completions") for _ in range(3)]
        time.sleep(0.3)
        for path, message in ((b"/v1/messages", "error"), (b"/api/chat", None), (b"/health", None)):
            answer = server.ask(GET.replace(b"/health", path))
            assert status(answer) == 503, answer
            assert b"Retry-After" in answer or b"retry-after" in answer
            error = json.loads(body(answer))
            said = error["error"] if path == b"/api/chat" else error["error"]["message"]
            assert "3 connections" in said
            assert error.get("type") == message
        assert [status(received(one)) for one in asked] == [408] * 3
        for one in asked:
            one.close()
        assert status(server.ask(GET)) == 200


MESSAGES = [{"role": "user", "content": "Hi"}]
LONG = {"ignore_eos": True, "temperature": 1.3, "prompt_lookup": False}
WHOLE: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "one", "prompt": "a", "max_tokens": 1 << 14, "n": 4, **LONG},
    "/v1/chat/completions": {"model": "one", "messages": MESSAGES, "max_tokens": 1 << 14, "n": 4, **LONG},
    "/v1/responses": {"model": "one", "input": "a", "max_output_tokens": 1 << 14, **LONG},
    "/v1/messages": {"model": "one", "messages": MESSAGES, "max_tokens": 1 << 14, **LONG},
    "/api/chat": {"model": "one", "messages": MESSAGES, "options": {"num_predict": 1 << 14, **LONG}},
}


def test_requests_that_outlive_the_grace_get_an_error_of_their_api(tmp_path: Path) -> None:
    model = Path(random_model("llama", tmp_path / "one", kind="safetensors", vocabulary=320, context=1 << 15))
    (model / "chat_template.jinja").write_text(CHAT)
    found: dict[tuple[str, bool], tuple[int, str, str]] = {}

    def ask(path: str, streams: bool) -> None:
        asked = {**WHOLE[path], "stream": streams}
        with httpx.stream("POST", server.url + path, json=asked, timeout=60) as answer:
            text = ""
            try:
                for line in answer.iter_lines():
                    begun[path].set()
                    text += line + "\n"
            except httpx.HTTPError as error:
                text += repr(error)
            found[path, streams] = answer.status_code, answer.headers["content-type"], text

    begun = {path: threading.Event() for path in WHOLE}
    with server_process(model, "--shutdown-timeout", "0.2") as server:
        asking = [threading.Thread(target=ask, args=(path, streams)) for path in WHOLE for streams in (False, True)]
        for one in asking:
            one.start()
        for path in WHOLE:
            assert begun[path].wait(60)
        server.end()
        for one in asking:
            one.join()
        assert server.process.wait(30) in (0, -15)
        said = "".join(server.said)
    assert "Traceback" not in said, said
    for (path, streams), (code, kind, text) in found.items():
        if streams:
            assert code == 200
            lines = [line for line in text.splitlines() if line]
            error = json.loads(lines[-1].removeprefix("data: "))
            assert kind.startswith("application/x-ndjson" if path == "/api/chat" else "text/event-stream")
            assert ("event: error" in lines) == (path in ("/v1/messages", "/v1/responses")), lines[-3:]
        else:
            assert (code, kind) == (503, "application/json"), text[-300:]
            error = json.loads(text)
        said = error["error"] if path == "/api/chat" else error["error"]["message"]
        assert "the server is shutting down" in said, (path, text[-300:])


def test_who_opens_the_page_has_no_hold_on_it(server: ServerProcess) -> None:
    page = httpx.get(server.url, headers={"Accept": "text/html"})
    assert page.headers["cross-origin-opener-policy"] == "same-origin"


KEYS = st.text(
    st.characters(min_codepoint=33, max_codepoint=255, exclude_categories=("Cs", "Z", "C")), min_size=1, max_size=9
)


@pytest.mark.parametrize("keys", [{"keys": [""]}, {"keys": ["a", " "]}, {"keys": ["a"], "admins": [""]}])
def test_an_empty_key_would_open_the_server(keys: dict[str, list[str]]) -> None:
    with pytest.raises(InvalidRequest, match="a key of the server is empty"):
        AccessRules(**keys)


@pytest.mark.parametrize("key", ["a\nb", "a\r\nX: b", "a\0b", "a\x01", "a\x7fb", "ключ", "a\u2028b", "日"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    for keys in ({"keys": [key]}, {"keys": ["a"], "admins": [key]}):
        with pytest.raises(InvalidRequest, match="no HTTP header can carry") as caught:
            AccessRules(**keys)
        assert key not in str(caught.value)
    with pytest.raises(InvalidRequest, match="the key has a character that no HTTP header can carry"):
        key_headers(key)
    assert key_headers("sé\udce9") == {b"Authorization": b"Bearer s\xc3\xa9\xe9"}


@given(KEYS, st.lists(KEYS, max_size=2), st.sampled_from(["Bearer", "bearer", "BEARER", "beaRer  "]), st.booleans())
def test_keys_of_all_letters(key: str, others: list[str], scheme: str, x_api_key: bool) -> None:
    rules = AccessRules(keys=[key], admins=[one for one in others if one != key])
    for encoding in ("utf-8", "latin-1"):
        try:
            sent = key.encode(encoding)
        except UnicodeEncodeError:
            continue
        header = (b"x-api-key", sent) if x_api_key else (b"authorization", f"{scheme} ".encode() + sent)
        headers = Headers(raw=[header])
        assert rules.key(headers) == key
        assert (rules.viewer(headers).key, rules.viewer(headers).admin) == (key, False)
        for wrong in (sent + b"x", sent[:-1], b""):
            assert rules.key(Headers(raw=[(header[0], header[1].replace(sent, wrong))])) != key
