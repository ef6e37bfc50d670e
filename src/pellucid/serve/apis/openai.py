"""OpenAI's API: models, chat completions, text completions, embeddings."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.serve.api import DATA, Api, ClientCall, Route, answer
from pellucid.serve.body import MOST_CHOICES, MOST_LOGPROBS, Body, BodyForm
from pellucid.serve.generate import Streaming, generated
from pellucid.serve.llamacpp.telemetry import Telemetry
from pellucid.serve.model import ServedModel
from pellucid.serve.openai.answer import error_body
from pellucid.serve.openai.chat import ChatRequest, blank_chunk
from pellucid.serve.openai.completions import CompletionRequest, blank_event
from pellucid.serve.openai.embeddings import EmbeddingRequest
from pellucid.serve.openai.fields import OPENAI_BODY, PLAIN_BODY
from pellucid.serve.schema import (
    COUNT,
    FLAG,
    OBJECT,
    PROMPT,
    TEXT,
    Schema,
    body,
    closed,
    function,
    generation_options,
    harmless,
    listed,
    message,
    one_of,
    tools,
    whole,
)  # fmt: skip

GENERATION: Mapping[str, Schema] = {
    **generation_options("watch", "prompt_logprobs"),
    "n": whole(1, MOST_CHOICES),
    "stream": FLAG,
    "timings_per_token": FLAG,
    "return_progress": FLAG,
    "verbose": FLAG,
    "stream_options": closed(
        {"include_usage": FLAG, "include_obfuscation": harmless("stream_options.include_obfuscation")}
    ),
}
NAMED_FUNCTION = closed(
    {"type": one_of("function"), "function": closed({"name": TEXT}, "name")}, "type", "function"
)
ALLOWED = closed({"mode": one_of("auto", "required"), "tools": listed(NAMED_FUNCTION)}, "mode", "tools")
CHAT = body(
    {"model": TEXT, "messages": listed(message("system", "developer", "user", "assistant", "tool"))},
    {
        **GENERATION,
        "logprobs": FLAG,
        "top_logprobs": whole(0, MOST_LOGPROBS),
        "tools": tools(closed({"type": one_of("function"), "function": function()}, "type", "function")),
        "tool_choice": {
            "anyOf": [
                one_of("none", "auto", "required"),
                NAMED_FUNCTION,
                closed({"type": one_of("allowed_tools"), "allowed_tools": ALLOWED}, "type", "allowed_tools"),
            ]
        },
        "parallel_tool_calls": FLAG,
        "response_format": closed(
            {
                "type": one_of("text", "json_object", "json_schema"),
                "json_schema": closed(
                    {
                        "schema": OBJECT,
                        **{
                            name: harmless(f"response_format.json_schema.{name}")
                            for name in ("name", "description", "strict")
                        },
                    },
                    "schema",
                ),
                "schema": OBJECT,
            },
            "type",
        ),
        "reasoning_effort": TEXT,
        "enable_thinking": FLAG,
        "chat_template_kwargs": OBJECT,
        "add_generation_prompt": FLAG,
        "continue_final_message": FLAG,
    },
    OPENAI_BODY,
)
COMPLETION = body(
    {"model": TEXT, "prompt": PROMPT},
    {
        **GENERATION,
        "best_of": whole(1, MOST_CHOICES),
        "echo": FLAG,
        "logprobs": whole(0, MOST_LOGPROBS),
        "suffix": TEXT,
    },
    OPENAI_BODY,
)
EMBEDDING = body(
    {"model": TEXT, "input": PROMPT},
    {"encoding_format": one_of("float", "base64"), "dimensions": COUNT},
    PLAIN_BODY,
)


def generates(
    read: Callable[[Body, ServedModel], Streaming],
    blank: Callable[[str, str], dict[str, Any]],
    form: BodyForm = OPENAI_BODY,
    *,
    own: bool = False,
) -> Callable[[ClientCall], Awaitable[Response]]:
    """Handler that generates. ``blank`` builds an event without text. ``own``: the path is llama.cpp's own."""

    async def run(call: ClientCall) -> Response:
        fields = Body(await call.json(), form)
        name, streams, telemetry = call.model(fields), fields.flag("stream"), Telemetry.of(fields, own=own)
        return await generated(
            call,
            name,
            lambda llm: telemetry.told(read(fields, llm), blank, llm.tokenizer),
            DATA if streams else None,
        )

    return run


async def _embeddings(call: ClientCall) -> Response:
    fields = Body(await call.json(), PLAIN_BODY)
    name = call.model(fields)
    async with call.use(name) as llm:
        return answer(
            await run_in_threadpool(lambda: EmbeddingRequest.of(fields, llm).answer(name, call.number))
        )


def model(call: ClientCall, name: str) -> dict[str, Any]:
    """Entry of a list of models."""
    return {"id": name, "object": "model", "created": call.models.created, "owned_by": "pellucid"}


async def _models(call: ClientCall) -> Response:
    return answer({"object": "list", "data": [model(call, name) for name in call.models.names]})


async def _one_model(call: ClientCall) -> Response:
    return answer(model(call, call.models.known(call.request.path_params["name"])))


OPENAI = Api(
    "openai",
    {
        "GET /v1/models": Route(_models, "The models of this server."),
        "GET /v1/models/{name:path}": Route(_one_model, "A model of this server."),
        "POST /v1/chat/completions": Route(
            generates(ChatRequest.of, blank_chunk), "Answer a conversation.", CHAT, DATA.media_type
        ),
        "POST /v1/completions": Route(
            generates(CompletionRequest.of, blank_event), "Continue a text.", COMPLETION, DATA.media_type
        ),
        "POST /v1/embeddings": Route(_embeddings, "Vectors of texts.", EMBEDDING),
    },
    error_body,
    prefixes=("/",),
)
