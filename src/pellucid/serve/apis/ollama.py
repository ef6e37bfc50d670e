"""Ollama's API: chats, texts, vectors, models."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.api import LINES, Api, ClientCall, Route, answer
from pellucid.serve.body import Body, BodyForm
from pellucid.serve.generate import Streaming, generated
from pellucid.serve.model import ServedModel
from pellucid.serve.ollama import models
from pellucid.serve.ollama.chat import OllamaChat
from pellucid.serve.ollama.fields import EMBED_BODY, OLLAMA_BODY, OPTIONS, error_body, piece
from pellucid.serve.ollama.generate import OllamaGenerate
from pellucid.serve.schema import (
    COUNT,
    FLAG,
    LOGPROBS,
    OBJECT,
    TEXT,
    TEXTS,
    body,
    closed,
    function,
    generation_options,
    harmless,
    message,
    one_of,
    tools,
)

SPOKEN = "0.12.0"
"""The version of Ollama whose API this is; clients ask for it."""


NAME = {"name": TEXT}
"""The model's name in older requests."""
SHARED = {
    **generation_options("watch", *LOGPROBS),
    **NAME,
    "stream": FLAG,
    "format": {"anyOf": [one_of("json", ""), OBJECT]},
    "options": body({}, generation_options("watch", *LOGPROBS), OPTIONS),
    "think": {"anyOf": [FLAG, one_of("low", "medium", "high")]},
}
CHAT = body(
    {"model": TEXT, "messages": {"type": "array", "items": message("system", "user", "assistant", "tool")}},
    {**SHARED, "tools": tools(closed({"type": one_of("function"), "function": function()}, "function"))},
    OLLAMA_BODY,
)
GENERATE = body(
    {"model": TEXT},
    {
        **SHARED,
        "prompt": TEXT,
        "suffix": TEXT,
        "system": TEXT,
        "raw": FLAG,
        "context": {"const": []},
    },
    OLLAMA_BODY,
)
EMBED = body(
    {"model": TEXT, "input": TEXTS},
    {**NAME, "truncate": FLAG, "dimensions": COUNT},
    EMBED_BODY,
)


async def _body(call: ClientCall, form: BodyForm = OLLAMA_BODY) -> tuple[Body, str]:
    """The fields of a request, and the name of its model without Ollama's tag for the latest one."""
    fields = Body(await call.json(), form)
    old = fields.take("name")
    name = fields.model() if old is None or fields.has("model") else old
    if not isinstance(name, str):
        raise InvalidRequest(f"name={brief(name)}: must be the name of a model")
    return fields, call.models.known(name if name in call.models.names else name.removesuffix(":latest"))


def _generates(
    read: Callable[[Body, ServedModel], Streaming], field: str
) -> Callable[[ClientCall], Awaitable[Response]]:
    """A route that generates; a request without ``field`` only loads the model."""

    async def run(call: ClientCall) -> Response:
        fields, name = await _body(call)
        streams = fields.flag("stream", True)
        if not fields.has(field):
            async with call.models.use(name):
                pass
            message = {"role": "assistant", "content": ""}
            done = piece(name, **({"message": message} if field == "messages" else {"response": ""}))
            return answer({**done, "done": True, "done_reason": "load"})
        return await generated(call, name, lambda llm: read(fields, llm), LINES if streams else None)

    return run


async def _embed(call: ClientCall) -> Response:
    start = time.perf_counter()
    fields, name = await _body(call, EMBED_BODY)
    texts, truncate = fields.texts("input"), fields.flag("truncate", True)
    async with call.models.use(name) as llm:
        dimensions = fields.count("dimensions", 1, 1 << 24)
        if dimensions not in (None, llm.width):
            raise InvalidRequest(f"dimensions={dimensions}: the model's vectors have {llm.width}")
        if left := fields.rest():
            raise InvalidRequest(f"unknown field {brief(min(left))}: an embedding has input and truncate")

        def run() -> dict[str, Any]:
            encoded = llm.inputs.sentences(texts, truncate) if texts else []
            vectors = llm.embed_tokens(encoded).tolist() if texts else []
            tokens = sum(map(len, encoded))
            total = round(1e9 * (time.perf_counter() - start))
            times = {"total_duration": total, "load_duration": 0, "prompt_eval_count": tokens}
            return {"model": name, "embeddings": vectors, **times}

        return answer(await run_in_threadpool(run))


async def _embeddings(call: ClientCall) -> Response:
    """The older form: one prompt."""
    fields, name = await _body(call)
    prompt = fields.text("prompt") or ""
    async with call.models.use(name) as llm:

        def embedded() -> Any:
            return llm.embed_tokens(llm.inputs.sentences([prompt]))

        return answer({"embedding": (await run_in_threadpool(embedded))[0].tolist()})


async def _show(call: ClientCall) -> Response:
    _, name = await _body(call)
    async with call.models.use(name) as llm:
        return answer(await run_in_threadpool(models.shown, llm))


async def _tags(call: ClientCall) -> Response:
    found = [models.listed(name, call.models.llm(name)) for name in call.models.names]
    return answer({"models": found})


async def _running(call: ClientCall) -> Response:
    loaded = [(name, call.models.llm(name)) for name in call.models.loaded]
    return answer({"models": [models.running(name, llm) for name, llm in loaded if llm]})


async def _version(call: ClientCall) -> Response:
    return answer({"version": SPOKEN})


OLLAMA = Api(
    "ollama",
    {
        "GET /api/version": Route(_version, "The version of this API."),
        "GET /api/tags": Route(_tags, "The models of this server."),
        "GET /api/ps": Route(_running, "The models in memory."),
        "POST /api/show": Route(
            _show, "All about a model.", body({"model": TEXT}, {**NAME, "verbose": harmless("verbose")})
        ),
        "POST /api/generate": Route(
            _generates(OllamaGenerate.of, "prompt"), "Answer a prompt.", GENERATE, LINES.media_type
        ),
        "POST /api/chat": Route(
            _generates(OllamaChat.of, "messages"), "Answer a conversation.", CHAT, LINES.media_type
        ),
        "POST /api/embed": Route(_embed, "Vectors of texts.", EMBED),
        "POST /api/embeddings": Route(
            _embeddings, "The vector of a text.", body({"model": TEXT, "prompt": TEXT}, NAME, EMBED_BODY)
        ),
    },
    error_body,
    prefixes=("/api/",),
)
