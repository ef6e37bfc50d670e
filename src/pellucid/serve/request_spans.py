"""OpenTelemetry spans of requests that generate text, sent over OTLP as OpenTelemetry's environment variables say.

A request has a span, such as "chat smollm2", with the spans "queue", "prefill" and "decode" below it. The spans hold no
text of prompts and answers. The packages of the extra ``pellucid[otel]`` are imported only if the environment asks for
traces.

Sources: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/,
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/, and https://www.w3.org/TR/trace-context/.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest

import pellucid
from pellucid.engine.request import Request
from pellucid.errors import InvalidRequest, brief, reason
from pellucid.serve.metrics import REASONS

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
NANOSECONDS = 1_000_000_000
TEXT_PATHS = ("/v1/completions", "/completions", "/completion", "/infill", "/api/generate", "/look/generate")
"""Paths that continue a text. All other paths that generate answer a conversation."""
SAMPLING = ("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty")
GONE = 499  # the client has disconnected; the status appears in metrics and spans only


def request_spans(environment: Mapping[str, str]) -> RequestSpans | None:
    """The spans that the environment asks for, or None. Prints a line if the server cannot send them.

    Raises:
        InvalidRequest: a variable has a value that OpenTelemetry does not accept.
    """
    if not (asked := _asked_by(environment)):
        return None
    protocol = next(((name, environment[name]) for name in PROTOCOLS if environment.get(name)), None)
    if protocol and protocol[1] != PROTOCOL:
        name, value = protocol
        _print(f"{name}={brief(value)}: Pellucid sends traces as {PROTOCOL} only, so it sends none: change {name}")
        return None
    try:
        return RequestSpans(_provider())
    except ImportError as error:
        _print(
            f"{asked} asks for traces, but OpenTelemetry is not installed ({reason(error)}), so the server sends none: "
            "pip install 'pellucid[otel]'"
        )
        return None
    except ValueError as error:
        raise InvalidRequest(f"the variables OTEL_…: {reason(error)}: correct the variable") from error


def _asked_by(environment: Mapping[str, str]) -> str | None:
    """Name of the environment variable that asks for traces; None if none does, or another variable forbids them."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    exporters = environment.get("OTEL_TRACES_EXPORTER", "").split(",")
    if any(exporters) and "otlp" not in (one.strip() for one in exporters):
        return None
    if any(exporters):
        return "OTEL_TRACES_EXPORTER"
    return next((name for name in ENDPOINTS if environment.get(name)), None)


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _provider() -> TracerProvider:
    """A provider that reads the sampler, the resource, the limits and the exporter's settings from the environment."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource({SERVICE_VERSION: pellucid.__version__}).merge(Resource.create())
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "pellucid"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class RequestSpans:
    """Makes the spans of requests, and sends them through ``provider`` in a thread beside the server."""

    def __init__(self, provider: TracerProvider) -> None:
        # OTEL_PROPAGATORS is checked when the module is imported.
        from opentelemetry.propagate import extract

        self._provider, self._extract = provider, extract
        self._tracer = provider.get_tracer("pellucid", pellucid.__version__)

    def span(self, request: HTTPRequest, model: str, status_of: Callable[[BaseException], int]) -> RequestSpan:
        """The span of a request that arrives now, as a context manager. It continues the trace of the client.

        ``model`` is the name of the model that answers. ``status_of`` returns the HTTP status of an error.
        """
        from opentelemetry.trace import SpanKind

        path = request.scope["path"]
        operation = "text_completion" if path in TEXT_PATHS else "chat"
        host, port = request.scope.get("server") or ("", None)
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "pellucid",
            "gen_ai.request.model": model,
            "gen_ai.response.model": model,
            "http.request.method": request.method,
            "http.route": path,
            "server.address": host,
        }
        if port is not None:
            attributes["server.port"] = port
        name, context = f"{operation} {model}", self._extract(dict(request.headers))
        span = self._tracer.start_span(name, context, kind=SpanKind.SERVER, attributes=attributes)
        return RequestSpan(self._tracer, span, status_of)

    async def close(self) -> None:
        """Send the spans that are still here, and stop the thread."""
        await asyncio.to_thread(self._provider.shutdown)


class RequestSpan:
    """The span of a request, from its arrival until the end of the response.

    ``status_of`` returns the HTTP status of an error.
    """

    def __init__(self, tracer: Tracer, span: Span, status_of: Callable[[BaseException], int]) -> None:
        self._tracer, self._span, self._status_of = tracer, span, status_of
        self._groups, self._begun = list[Request](), 0

    def begin(self, number: str, groups: Sequence[Request], *, stream: bool) -> None:
        """The engine requests start now. ``number`` is the final id of the request."""
        self._groups, self._begun = list(groups), time.time_ns()
        if not self._span.is_recording():
            return
        self._span.set_attribute("http.response.header.x-request-id", (number,))
        self._span.set_attribute("gen_ai.request.stream", stream)
        options, count = groups[0].options, sum(len(group.outputs) for group in groups)
        values: dict[str, Any] = {name: options.sampling.get(name) for name in SAMPLING}
        values |= {"max_tokens": options.max_new_tokens, "seed": options.seed}
        values["choice.count"] = count if count > 1 else None
        stops = [options.stop] if isinstance(options.stop, str) else list(options.stop or ())
        values["stop_sequences"] = stops or None
        for name, value in values.items():
            if value is not None:
                self._span.set_attribute(f"gen_ai.request.{name}", value)

    def __enter__(self) -> RequestSpan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._span.is_recording():
            self._end(error)
        self._span.end()

    def _end(self, error: BaseException | None) -> None:
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        status = 200
        if isinstance(error, (ClientDisconnect, asyncio.CancelledError, GeneratorExit)):
            status, kind = GONE, ClientDisconnect.__name__
        elif error is not None:
            status, kind = self._status_of(error), type(error).__name__
        if error is not None:
            self._span.set_attribute("error.type", kind)
            if status >= 500:
                self._span.set_status(Status(StatusCode.ERROR, str(error)))
        self._span.set_attribute("http.response.status_code", status)
        if not self._groups:
            return
        usages = [one.usage for group in self._groups for one in group.results()]
        prompts = [group.result().usage for group in self._groups]
        reasons = [one.finish_reason for group in self._groups for one in group.outputs]
        for name, value in (
            ("gen_ai.usage.input_tokens", sum(one.prompt_tokens for one in prompts)),
            ("gen_ai.usage.cache_read.input_tokens", sum(one.cached_tokens for one in prompts)),
            ("gen_ai.usage.output_tokens", sum(one.generated_tokens for one in usages)),
            ("gen_ai.response.finish_reasons", [REASONS[one] for one in reasons]),
        ):
            self._span.set_attribute(name, value)
        context, now = set_span_in_context(self._span), time.time_ns()
        for group in self._groups:
            self._add_children(group, context, now)

    def _add_children(self, group: Request, context: Context, now: int) -> None:
        """Add the spans of a group: its wait and its prefill, and the decode steps of each sequence."""
        begun = [one for one in group.outputs if one.ids]
        waited = self._begun + int(group.prompt_output.queue * NANOSECONDS)
        first = min((self._begun + int(one.first * NANOSECONDS) for one in begun), default=now)
        if not begun and group.prompt_read is None:
            self._child("queue", context, self._begun, now)
            return
        self._child("queue", context, self._begun, waited)
        usage = group.result().usage
        counts = {
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        }
        self._child("prefill", context, waited, first, counts)
        for one, (proposed, accepted) in zip(group.outputs, group.speculation or [(0, 0)] * len(group.outputs)):
            if one.ids:
                counts = {"gen_ai.usage.output_tokens": len(one.ids)}
                if proposed:
                    counts |= {"pellucid.draft_tokens": proposed, "pellucid.accepted_draft_tokens": accepted}
                self._child("decode", context, first, self._begun + int(one.total * NANOSECONDS), counts)

    def _child(
        self, name: str, context: Context, start: int, end: int, attributes: Mapping[str, Any] | None = None
    ) -> None:
        span = self._tracer.start_span(name, context, attributes=attributes, start_time=start)
        span.end(max(start, end))
