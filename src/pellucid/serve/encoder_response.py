"""Routes of requests to encoders: a response follows when all texts of the request are encoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.serve.api import ClientCall, Route, json_response
from pellucid.serve.request_body import BodyType, ModelFields, RequestBody
from pellucid.serve.served_model import ServedModel

M = TypeVar("M", bound=ModelFields)


def encoder_route(
    summary: str,
    body_type: BodyType[M],
    answer: Callable[[RequestBody[M], ServedModel, str, str], Mapping[str, Any] | list[Any]],
) -> Route:
    """A route whose response ``answer`` computes from the body, the model, its name and the number of the request."""

    async def run(call: ClientCall) -> Response:
        body = await call.read(body_type)
        name = call.model(body.fields.model)
        async with call.use(name) as llm:
            return json_response(await run_in_threadpool(answer, body, llm, name, call.number))

    return Route(run, summary, body_type)
