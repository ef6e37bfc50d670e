"""Spans of requests, received by an OTLP server: their tree, times and attributes, and what switches them on."""

from __future__ import annotations

import asyncio
import gzip
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from starlette.requests import Request
from support.served import Served, models_folder, serving

from pellucid.serve.api import known_apis
from pellucid.serve.request_spans import TEXT_PATHS, RequestSpans, request_spans

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
MESSAGES = [{"role": "user", "content": "Hi"}]
CHAT = {"model": "one", "messages": MESSAGES, "max_tokens": 9, "ignore_eos": True}
SETTINGS = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test"}


class Collector:
    """An OTLP receiver at ``url``. ``spans`` are the spans so far, ``resources`` the attributes of their resources."""

    def __init__(self) -> None:
        self.spans, self.resources, self.headers = (list[Span](), list[dict[str, Any]](), list[dict[str, str]]())
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.take(self.path, dict(self.headers), body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        assert path == "/v1/traces"
        request = ExportTraceServiceRequest.FromString(body)
        for group in request.resource_spans:
            self.resources.append(attributes(group.resource))
            for scope in group.scope_spans:
                self.spans += scope.spans
        self.headers.append(headers)

    def trace(self, name: str, count: int) -> tuple[Span, list[Span]]:
        """The only span called ``name``, and its ``count`` children in the order of their starts. Then forget all."""
        for _ in range(200):
            roots = [one for one in self.spans if one.name == name]
            if roots and len(self.spans) > count:
                break
            time.sleep(0.05)
        (root,), spans = roots, self.spans
        self.spans = []
        children = [one for one in spans if one.parent_span_id == root.span_id]
        assert len(children) == count == len(spans) - 1
        assert {one.trace_id for one in children} <= {root.trace_id}
        return root, sorted(children, key=lambda one: one.start_time_unix_nano)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def attributes(of: Any) -> dict[str, Any]:
    """The attributes of a span or a resource as Python values."""

    def value(one: Any) -> Any:
        kind = one.WhichOneof("value")
        return [value(item) for item in one.array_value.values] if kind == "array_value" else getattr(one, kind)

    return {one.key: value(one.value) for one in of.attributes}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**SETTINGS, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}.items():
            patch.setenv(name, value)
        spans = request_spans(os.environ)
    assert spans is not None
    with serving(models_folder(tmp_path_factory.mktemp("spans")), spans=spans) as made:
        yield made


@pytest.fixture(autouse=True)
def forgotten(collector: Collector) -> None:
    collector.spans.clear()


def post(served: Served, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    return httpx.post(served.url + path, json=body, headers=headers, timeout=30)


def test_a_request_has_a_span_with_its_stages_below(served: Served, collector: Collector) -> None:
    before = time.time_ns()
    options = {"temperature": 0.5, "top_k": 3, "seed": 7, "stop": ["§"]}
    response = post(served, "/v1/chat/completions", {**CHAT, **options}, **{"X-Request-Id": "my-1"})
    usage = response.json()["usage"]
    root, (queue, prefill, decode) = collector.trace("chat one", 3)
    assert [one.name for one in (queue, prefill, decode)] == ["queue", "prefill", "decode"]
    assert root.kind == Span.SPAN_KIND_SERVER
    assert not root.parent_span_id
    assert root.status.code == Status.STATUS_CODE_UNSET
    assert attributes(root) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "pellucid",
        "gen_ai.request.model": "one",
        "gen_ai.response.model": "one",
        "gen_ai.request.stream": False,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.top_k": 3,
        "gen_ai.request.seed": 7,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.stop_sequences": ["§"],
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.output_tokens": 9,
        "gen_ai.response.finish_reasons": ["length"],
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "http.response.header.x-request-id": ["my-1"],
        "server.address": "127.0.0.1",
        "server.port": int(served.url.rpartition(":")[2]),
    }
    assert attributes(prefill)["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert attributes(decode)["gen_ai.usage.output_tokens"] == 9
    # The stages follow each other, within the request.
    times = [time for one in (queue, prefill, decode) for time in (one.start_time_unix_nano, one.end_time_unix_nano)]
    assert [before, root.start_time_unix_nano, *times, root.end_time_unix_nano] == sorted(
        [before, root.start_time_unix_nano, *times, root.end_time_unix_nano]
    )
    assert queue.end_time_unix_nano == prefill.start_time_unix_nano
    assert prefill.end_time_unix_nano == decode.start_time_unix_nano
    assert decode.end_time_unix_nano > decode.start_time_unix_nano


def test_the_resource_names_the_service(served: Served, collector: Collector) -> None:
    post(served, "/v1/chat/completions", CHAT)
    collector.trace("chat one", 3)
    resource = collector.resources[-1]
    assert resource["service.name"] == "pellucid"
    assert resource["deployment.environment.name"] == "test"
    assert resource["telemetry.sdk.name"] == "opentelemetry"


def test_every_attribute_of_the_conventions_exists_there(served: Served, collector: Collector) -> None:
    post(served, "/v1/chat/completions", {**CHAT, "n": 2, "frequency_penalty": 1, "presence_penalty": 1, "top_p": 0.5})
    root, children = collector.trace("chat one", 4)
    known = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")}
    used = {name for one in (root, *children) for name in attributes(one) if name.startswith("gen_ai.")}
    assert used <= known
    assert {"gen_ai.request.choice.count", "gen_ai.request.frequency_penalty", "gen_ai.request.top_p"} <= used


def test_a_request_continues_the_trace_of_its_client(served: Served, collector: Collector) -> None:
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    post(served, "/v1/chat/completions", CHAT, traceparent=f"00-{trace}-{parent}-01")
    root, _ = collector.trace("chat one", 3)
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (trace, parent)
    post(served, "/v1/chat/completions", CHAT, traceparent=f"00-{trace}-{parent}-00")
    time.sleep(0.3)
    assert not collector.spans, "the client's trace is not sampled"


def test_a_stream_has_its_span_after_its_end(served: Served, collector: Collector) -> None:
    body = {"model": "one", "prompt": "to see", "max_tokens": 20, "stream": True, "ignore_eos": True, "n": 2}
    with httpx.stream("POST", served.url + "/v1/completions", json=body) as response:
        assert not collector.spans
        assert len(list(response.iter_lines())) > 20
    root, children = collector.trace("text_completion one", 4)
    assert sorted(one.name for one in children) == ["decode", "decode", "prefill", "queue"]
    found = attributes(root)
    assert found["gen_ai.request.stream"] is True
    assert found["gen_ai.request.choice.count"] == 2
    assert found["gen_ai.usage.output_tokens"] == 40
    assert found["gen_ai.response.finish_reasons"] == ["length", "length"]


def test_a_client_that_leaves_ends_the_span(served: Served, collector: Collector) -> None:
    body = {**CHAT, "max_tokens": 900, "stream": True}
    with httpx.stream("POST", served.url + "/v1/chat/completions", json=body) as response:
        lines = response.iter_lines()
        for _ in range(8):  # the role comes before the first token, so one line does not show that decoding began
            next(lines)
    root, _ = collector.trace("chat one", 3)
    found = attributes(root)
    assert found["error.type"] == "ClientDisconnect"
    assert found["http.response.status_code"] == 499
    assert found["gen_ai.response.finish_reasons"] == ["abort"]
    assert 0 < found["gen_ai.usage.output_tokens"] < 900
    assert root.status.code == Status.STATUS_CODE_UNSET


def test_a_refused_request_has_a_span_with_the_error(served: Served, collector: Collector) -> None:
    assert post(served, "/v1/chat/completions", {**CHAT, "temperature": -1}).status_code == 400
    root, _ = collector.trace("chat one", 0)
    assert attributes(root)["error.type"] == "InvalidRequest"
    assert attributes(root)["http.response.status_code"] == 400
    assert root.status.code == Status.STATUS_CODE_UNSET, "a client's mistake is no error of the server"


def test_a_full_queue_is_an_error_of_the_server(served: Served, collector: Collector) -> None:
    served.llm().engine.limit_queue(0)
    try:
        assert post(served, "/v1/chat/completions", CHAT).status_code == 503
    finally:
        served.llm().engine.limit_queue(256)
    root = next(one for one in wait_for(collector, 1) if one.name == "chat one")
    assert attributes(root)["error.type"] == "QueueFull"
    assert root.status.code == Status.STATUS_CODE_ERROR
    assert "queue" in root.status.message


def wait_for(collector: Collector, count: int) -> list[Span]:
    for _ in range(200):
        if len(collector.spans) >= count:
            break
        time.sleep(0.05)
    return collector.spans


def test_each_path_that_generates_is_of_one_operation() -> None:
    paths = [name.partition(" ")[2] for api in known_apis().values() for name, one in api.routes.items() if one.stream]
    chats = {one for one in paths if "chat" in one or "messages" in one or "responses" in one}
    others = {one for one in paths if one not in chats} - {"/v1/requests/{number}/trace", "/api/pull"}
    assert others == set(TEXT_PATHS)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "x"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nothing_is_imported_unless_the_environment_asks_for_traces(environment: dict[str, str]) -> None:
    code = (
        "import sys; from pellucid.serve.server import request_spans\n"
        f"assert request_spans({environment!r}) is None\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_the_extra_the_server_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert request_spans({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("OTEL_EXPORTER_OTLP_ENDPOINT asks for traces, but OpenTelemetry is not installed")
    assert line.endswith("pip install 'pellucid[otel]'")


def test_another_protocol_is_not_sent(capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    assert request_spans(asked) is None
    assert capsys.readouterr().err == (
        "OTEL_EXPORTER_OTLP_PROTOCOL='grpc': Pellucid sends traces as http/protobuf only, so it sends none: "
        "change OTEL_EXPORTER_OTLP_PROTOCOL\n"
    )


def test_an_unknown_propagator_is_an_error() -> None:
    code = (
        "from pellucid.serve.request_spans import request_spans\n"
        "from pellucid.errors import InvalidRequest\n"
        "try: request_spans({'OTEL_EXPORTER_OTLP_ENDPOINT': 'http://127.0.0.1:1'})\n"
        "except InvalidRequest as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "OTEL_PROPAGATORS": "pigeon"}, capture_output=True, text=True
    )
    assert "pigeon" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_server_sends_its_last_spans_at_its_end(served: Served, collector: Collector, tmp_path: Path) -> None:
    """The command line reads the environment, and a signal loses no span, although the next batch is far away."""
    folder = models_folder(tmp_path)
    environment = {
        **os.environ,
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/v1/traces",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-team=blue",
        "OTEL_SERVICE_NAME": "my-llm",
        "OTEL_BSP_SCHEDULE_DELAY": "600000",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "pellucid", "serve", str(folder / "one"), "--port", "0"],
        env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stderr is not None
        url = next(line.split()[-1] for line in server.stderr if " at http" in line)
        assert httpx.post(f"{url}/v1/chat/completions", json=CHAT, timeout=60).status_code == 200
        assert not collector.spans
    finally:
        server.terminate()
        ended = server.wait(60)
        server.stderr.close()
    assert ended in (0, -signal.SIGTERM)
    collector.trace("chat one", 3)
    assert collector.resources[-1]["service.name"] == "my-llm"
    assert collector.headers[-1]["x-team"] == "blue"


def test_the_server_ends_although_the_collector_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
    spans = request_spans(os.environ)
    assert isinstance(spans, RequestSpans)
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    with spans.span(Request(scope), "one", lambda error: 500):
        pass
    asyncio.run(asyncio.wait_for(spans.close(), 60))
