"""OpenAI's Responses API, without storage: a request sends the whole conversation."""

from __future__ import annotations

from starlette.responses import Response

from pellucid.serve.api import NAMED, Api, ClientCall
from pellucid.serve.body import Body
from pellucid.serve.generate import generated
from pellucid.serve.openai.answer import error_body
from pellucid.serve.responses.answer import ResponseRequest
from pellucid.serve.responses.request import RESPONSES_BODY


async def _responses(call: ClientCall) -> Response:
    fields = await call.json()
    body = Body(fields, RESPONSES_BODY)
    name, streams = body.model(), body.flag("stream")
    return await generated(
        call, name, lambda llm: ResponseRequest.of(body, fields, llm), NAMED if streams else None
    )


RESPONSES = Api("responses", {"POST /v1/responses": _responses}, error_body)
