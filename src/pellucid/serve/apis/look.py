"""The page, its files and its routes: generated text, traces, lenses, profiles (docs/page.md)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from starlette.responses import Response

from pellucid.errors import NotFound
from pellucid.errors.messages import brief
from pellucid.llm import LLM
from pellucid.serve.api import NAMED_SSE, TOGETHER_SSE, Api, ClientCall, Route, json_response
from pellucid.serve.apis.ollama_fields import capabilities
from pellucid.serve.generation_response import generation_response
from pellucid.serve.live_requests import HEADER
from pellucid.serve.look.queries import QUERIES, state
from pellucid.serve.look.token_events import LOOK_GENERATE, LookGeneration
from pellucid.serve.look.trace_reading import TRACE, TraceReading
from pellucid.serve.openai_parts import error_body
from pellucid.serve.request_body import RequestBody
from pellucid.serve.served_model import ServedModel
from pellucid.web.bundle import web_files

# The page and its files. The page itself needs no key; the requests that it sends do.

KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
HEADERS = {
    # Scripts and styles are files of this server. Text of a model or a user cannot run as a script or a style.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    # A site that opens the page gets no reference to the page's window.
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
    "Vary": "Accept",
}


def _file(path: str) -> Response:
    content = web_files().get(path)
    if content is None:
        raise NotFound(f"web/{brief(path)}: the page has no such file")
    kind = KINDS[path[path.rindex(".") :]]
    return Response(content, media_type=kind, headers=HEADERS)


async def _root(call: ClientCall) -> Response:
    if "text/html" in call.request.headers.get("accept", ""):
        return _file("index.html")
    return Response("Pellucid is running", media_type="text/plain")


async def _web(call: ClientCall) -> Response:
    return _file(call.request.path_params["path"])


PAGE = Api(
    "page",
    {
        "GET /": Route(_root, "The page, for browsers; a short text for Ollama's clients.", media="text/plain"),
        "GET /web/{path:path}": Route(_web, "A file of the page.", media="text/javascript"),
    },
    error_body,
    prefixes=("/web",),
)


# Routes of the page: generated text with token probabilities, traces, lenses, profiles (docs/serving.md).


async def _models(call: ClientCall) -> Response:
    """The names of the models, and the capabilities of the loaded models."""
    found = [(name, call.models.llm(name)) for name in call.models.names]
    return json_response(
        {
            "models": [
                {
                    "name": name,
                    "loaded": llm is not None,
                    **({} if llm is None else {"capabilities": capabilities(llm)}),
                }
                for name, llm in found
            ]
        }
    )


async def _model(call: ClientCall) -> Response:
    name = call.models.known(call.request.path_params["name"])
    return await _queried(call, "models", name, QUERIES["models"].body.decode({"name": name}))


async def _state(call: ClientCall) -> Response:
    name = call.models.known(call.request.path_params["name"])
    llm = call.models.llm(name)
    return json_response({"loaded": llm is not None, **({} if llm is None else state(llm))})


async def _generate(call: ClientCall) -> Response:
    body = await call.read(LOOK_GENERATE)
    name, fields = call.model(body.fields.model), body.fields
    form = TOGETHER_SSE if fields.points or fields.norms else NAMED_SSE
    stream = form if fields.stream else None
    return await generation_response(call, name, lambda llm: LookGeneration.of(body, llm), stream)


async def _trace(call: ClientCall) -> Response:
    body = await call.read(TRACE)
    name = call.model(body.fields.model)
    async with call.use(name) as llm:
        if not isinstance(llm, LLM):
            return await _remote(call, llm, "trace", name, body)
        return await generation_response(call, name, lambda _: TraceReading.of(body, llm), None)


def _query(kind: str) -> Callable[[ClientCall], Coroutine[Any, Any, Response]]:
    """Handler of the query ``kind``."""

    async def run(call: ClientCall) -> Response:
        body = await call.read(QUERIES[kind].body)
        return await _queried(call, kind, call.model(body.fields.model), body)

    return run


async def _queried(call: ClientCall, kind: str, name: str, body: RequestBody[Any]) -> Response:
    """Response of a query, computed where the model's engine runs: here or on a replica."""
    async with call.use(name) as llm:
        if not isinstance(llm, LLM):
            return await _remote(call, llm, kind, name, body)
        work = call.models.work(name, lambda _: QUERIES[kind].run(body, llm))
        return json_response(await call.cancelled_on_disconnect(work))


async def _remote(call: ClientCall, llm: ServedModel, kind: str, name: str, body: RequestBody[Any]) -> Response:
    assert not isinstance(llm, LLM)
    response = await call.cancelled_on_disconnect(llm.look(kind, name, body.raw))
    return Response(response, media_type="application/json", headers={HEADER: call.number})


LOOK = Api(
    "look",
    {
        "GET /look/models": Route(_models, "The models of this server, and which of them are loaded."),
        "GET /look/models/{name:path}": Route(_model, QUERIES["models"].summary),
        "GET /look/state/{name:path}": Route(_state, "Requests, steps and cache of a running model."),
        "POST /look/generate": Route(
            _generate,
            "Generated text, token by token, with the most likely alternatives of each token.",
            LOOK_GENERATE,
            stream="text/event-stream",
        ),
        "POST /look/trace": Route(_trace, "Recorded values of a prompt and its continuation.", TRACE),
        **{
            f"POST /look/{kind}": Route(_query(kind), query.summary, query.body)
            for kind, query in QUERIES.items()
            if kind != "models"
        },
    },
    error_body,
    prefixes=("/look",),
)
