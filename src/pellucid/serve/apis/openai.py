"""OpenAI's API: models, chat completions, text completions, embeddings."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from starlette.responses import Response

from pellucid.serve.api import DATA_SSE, Api, ClientCall, Route, json_response
from pellucid.serve.apis.llamacpp_fields import Telemetry
from pellucid.serve.apis.openai_chat import CHAT, ChatFields, ChatRequest, empty_chunk
from pellucid.serve.apis.openai_completions import (
    COMPLETION,
    EMBEDDING,
    CompletionFields,
    CompletionRequest,
    embeddings,
    empty_event,
)
from pellucid.serve.encoder_inputs import encoder_route
from pellucid.serve.generation_response import Streaming, generation_response
from pellucid.serve.openai_parts import error_body
from pellucid.serve.request_body import BodyType, RequestBody
from pellucid.serve.served_model import ServedModel

G = TypeVar("G", ChatFields, CompletionFields)


def generates(
    body_type: BodyType[G],
    read: Callable[[RequestBody[G], ServedModel], Streaming],
    blank: Callable[[str, str], dict[str, Any]],
    *,
    own: bool = False,
) -> Callable[[ClientCall], Awaitable[Response]]:
    """Handler that generates. ``blank`` builds an event without text.

    ``own`` is True if the path is in llama.cpp's API only.
    """

    async def run(call: ClientCall) -> Response:
        body = await call.read(body_type)
        name, fields = call.model(body.fields.model), body.fields
        telemetry = Telemetry(fields.timings_per_token, fields.return_progress, own, fields.verbose)
        return await generation_response(
            call,
            name,
            lambda llm: telemetry.wrap(read(body, llm), blank, llm.tokenizer),
            DATA_SSE if fields.stream else None,
        )

    return run


def model(call: ClientCall, name: str) -> dict[str, Any]:
    """Entry of a list of models."""
    return {"id": name, "object": "model", "created": call.models.created, "owned_by": "pellucid"}


async def _models(call: ClientCall) -> Response:
    return json_response({"object": "list", "data": [model(call, name) for name in call.models.names]})


async def _one_model(call: ClientCall) -> Response:
    return json_response(model(call, call.models.known(call.request.path_params["name"])))


OPENAI = Api(
    "openai",
    {
        "GET /v1/models": Route(_models, "The models of this server."),
        "GET /v1/models/{name:path}": Route(_one_model, "A model of this server."),
        "POST /v1/chat/completions": Route(
            generates(CHAT, ChatRequest.of, empty_chunk), "Answer a conversation.", CHAT, DATA_SSE.media_type
        ),
        "POST /v1/completions": Route(
            generates(COMPLETION, CompletionRequest.of, empty_event),
            "Continue a text.",
            COMPLETION,
            DATA_SSE.media_type,
        ),
        "POST /v1/embeddings": encoder_route("Vectors of texts.", EMBEDDING, embeddings),
    },
    error_body,
    prefixes=("/",),
)
