"""The page, its files and its routes: generated text, traces, lenses, profiles (docs/page.md)."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from pellucid.base_llm import BaseLLM
from pellucid.errors import NotFound
from pellucid.errors.messages import brief
from pellucid.llm import LLM
from pellucid.serve.api import NAMED_SSE, TOGETHER_SSE, Api, ClientCall, Route, json_response
from pellucid.serve.apis.ollama_fields import capabilities
from pellucid.serve.live_requests import HEADER
from pellucid.serve.look.queries import QUERIES, state
from pellucid.serve.look.token_events import LOOK_GENERATE, LookGeneration
from pellucid.serve.look.trace_reading import TRACE, TraceReading
from pellucid.serve.openai_parts import error_body
from pellucid.serve.request_body import RequestBody
from pellucid.serve.routes import generation_response, plain_route
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


async def _root_or_file(call: ClientCall) -> Response:
    if path := call.request.path_params.get("path"):
        return _file(path)
    if "text/html" in call.request.headers.get("accept", ""):
        return _file("index.html")
    return Response("Pellucid is running", media_type="text/plain")


PAGE = Api(
    "page",
    {
        "GET /": Route(_root_or_file, "The page, for browsers; a short text for Ollama's clients.", media="text/plain"),
        "GET /web/{path:path}": Route(_root_or_file, "A file of the page.", media="text/javascript"),
    },
    error_body,
    prefixes=("/web",),
)


def _models(call: ClientCall) -> dict[str, Any]:
    """The names of the models, and the capabilities of the loaded models."""
    found = [(name, call.models.llm(name)) for name in call.models.names]
    return {
        "models": [
            {"name": name, "loaded": llm is not None, **({"capabilities": capabilities(llm)} if llm else {})}
            for name, llm in found
        ]
    }


async def _model(call: ClientCall) -> Response:
    name = call.models.known(call.request.path_params["name"])
    return await _queried(call, "models", name, QUERIES["models"].body.decode({"name": name}))


def _state(call: ClientCall) -> dict[str, Any]:
    llm = call.models.llm(call.models.known(call.request.path_params["name"]))
    return {"loaded": llm is not None, **(state(llm) if llm else {})}


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


def _query(kind: str) -> Route:
    """The route of the query ``kind``."""
    query = QUERIES[kind]

    async def run(call: ClientCall) -> Response:
        body = await call.read(query.body)
        return await _queried(call, kind, call.model(body.fields.model), body)

    return Route(run, query.summary, query.body)


async def _queried(call: ClientCall, kind: str, name: str, body: RequestBody[Any]) -> Response:
    """Response of a query, computed where the model's engine runs: here or on a replica."""
    async with call.use(name) as llm:
        if not isinstance(llm, LLM):
            return await _remote(call, llm, kind, name, body)
        work = call.models.work(name, lambda _: QUERIES[kind].run(body, llm))
        return json_response(await call.cancelled_on_disconnect(work))


async def _remote(call: ClientCall, llm: BaseLLM[Any], kind: str, name: str, body: RequestBody[Any]) -> Response:
    assert not isinstance(llm, LLM)
    response = await call.cancelled_on_disconnect(llm.look(kind, name, body.raw))
    return Response(response, media_type="application/json", headers={HEADER: call.number})


LOOK = Api(
    "look",
    {
        "GET /look/models": plain_route("The models of this server, and which of them are loaded.", _models),
        "GET /look/models/{name:path}": Route(_model, QUERIES["models"].summary),
        "GET /look/state/{name:path}": plain_route("Requests, steps and cache of a running model.", _state),
        "POST /look/generate": Route(
            _generate,
            "Generated text, token by token, with the most likely alternatives of each token.",
            LOOK_GENERATE,
            stream="text/event-stream",
        ),
        "POST /look/trace": Route(_trace, "Recorded values of a prompt and its continuation.", TRACE),
        **{f"POST /look/{kind}": _query(kind) for kind in QUERIES if kind != "models"},
    },
    error_body,
    prefixes=("/look",),
)
