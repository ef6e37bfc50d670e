"""Routes of the page: generated text with token probabilities, traces, lenses, profiles (docs/serving.md)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from starlette.responses import Response

from pellucid.llm import LLM
from pellucid.serve.api import NAMED_SSE, TOGETHER_SSE, Api, ClientCall, Route, json_response
from pellucid.serve.generation_response import generation_response
from pellucid.serve.live_requests import HEADER
from pellucid.serve.look.queries import QUERIES
from pellucid.serve.look.running_model import state
from pellucid.serve.look.token_events import LOOK_GENERATE, LookGeneration
from pellucid.serve.look.trace_reading import TRACE, TraceReading
from pellucid.serve.ollama.model_descriptions import capabilities
from pellucid.serve.openai.response_parts import error_body
from pellucid.serve.request_body import RequestBody
from pellucid.serve.served_model import ServedModel


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


async def _remote(
    call: ClientCall, llm: ServedModel, kind: str, name: str, body: RequestBody[Any]
) -> Response:
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
