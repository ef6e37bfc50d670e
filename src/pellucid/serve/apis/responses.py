"""OpenAI's Responses API. The server stores responses for a while, so that later requests can continue them."""

from __future__ import annotations

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.errors import InvalidRequest, NotFound
from pellucid.serve.api import NAMED_SSE, Api, ClientCall, Route, json_response
from pellucid.serve.generation_response import generation_response
from pellucid.serve.openai.response_parts import error_body
from pellucid.serve.responses.input_items import input_items
from pellucid.serve.responses.response import ResponseRequest
from pellucid.serve.responses.response_fields import COUNT, RESPONSE
from pellucid.serve.responses.response_store import OwnResponses
from pellucid.serve.responses.truncation import counted


def _own(call: ClientCall) -> OwnResponses:
    return OwnResponses(call.responses, call.viewer.key)


def _number(call: ClientCall) -> str:
    return str(call.request.path_params["number"])


async def _responses(call: ClientCall) -> Response:
    body, own = await call.read(RESPONSE), _own(call)
    name, stream = call.model(body.fields.model), NAMED_SSE if body.fields.stream else None
    return await generation_response(call, name, lambda llm: ResponseRequest.of(body, llm, own), stream)


async def _input_tokens(call: ClientCall) -> Response:
    body, own = await call.read(COUNT), _own(call)
    async with call.use(call.model(body.fields.model)) as llm:
        count = await run_in_threadpool(counted, body, llm, own)
        return json_response({"object": "response.input_tokens", "input_tokens": count})


async def _one(call: ClientCall) -> Response:
    _no_query(call)
    return json_response(_own(call).get(_number(call)).body)


async def _delete(call: ClientCall) -> Response:
    number = _number(call)
    _own(call).delete(number)
    return json_response({"id": number, "object": "response", "deleted": True})


async def _input_items(call: ClientCall) -> Response:
    response = _own(call).get(_number(call))
    return json_response(input_items(response.input, call.request.query_params))


def _no_query(call: ClientCall) -> None:
    """Reject query parameters: a stored response is returned complete."""
    for name, value in call.request.query_params.items():
        raise InvalidRequest(f"{name}={value[:80]!r}: a stored response is returned complete; leave it out")


def _refused(why: str) -> Any:
    """Handler of a route that is not implemented. It only reports ``why``."""

    async def run(call: ClientCall) -> Response:
        raise NotFound(f"{call.request.method} {call.request.url.path}: {why}")

    return run


RESPONSES = Api(
    "responses",
    {
        "POST /v1/responses": Route(_responses, "Answer a conversation.", RESPONSE, NAMED_SSE.media_type),
        "GET /v1/responses": Route(
            _refused("there is no WebSocket and no list of responses; use POST with stream=true"), "Refused."
        ),
        "POST /v1/responses/input_tokens": Route(_input_tokens, "Count a conversation's tokens.", COUNT),
        "POST /v1/responses/compact": Route(
            _refused('conversations are not compacted; truncation="auto" drops their first messages'),
            "Refused.",
        ),
        "GET /v1/responses/{number}": Route(_one, "A stored response."),
        "DELETE /v1/responses/{number}": Route(_delete, "Delete a stored response."),
        "GET /v1/responses/{number}/input_items": Route(
            _input_items, "The input items of a stored response."
        ),
    },
    error_body,
)
