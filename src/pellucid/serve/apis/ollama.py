"""Ollama's API: chat, generation, embeddings, models."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.api import LINES, Api, ClientCall, Route, answer, event_stream
from pellucid.serve.body import MOST_LOGPROBS, Body
from pellucid.serve.generate import Streaming, generated
from pellucid.serve.model import ServedModel
from pellucid.serve.ollama import models
from pellucid.serve.ollama.chat import OllamaChat
from pellucid.serve.ollama.fields import (
    OLLAMA_BODY,
    OPTIONS,
    PULL_BODY,
    error_body,
    keep_alive_of,
    no_options,
    piece,
)
from pellucid.serve.ollama.generate import OllamaGenerate
from pellucid.serve.ollama.pulling import pulling
from pellucid.serve.schema import (
    COUNT,
    FLAG,
    IDS,
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
    whole,
)
from pellucid.weights.sources.source import Silent

SPOKEN = "0.12.0"
"""Version of Ollama whose API the server implements. Clients query it."""


NAME = {"name": TEXT}
"""Field for the model's name in older requests."""
KEEP = {"keep_alive": {"anyOf": [TEXT, {"type": "number"}]}}
SHARED = {
    **generation_options("watch", *LOGPROBS),
    **NAME,
    **KEEP,
    "stream": FLAG,
    "format": {"anyOf": [one_of("json", ""), OBJECT]},
    "options": body({}, generation_options("watch", *LOGPROBS), OPTIONS),
    "think": {"anyOf": [FLAG, one_of("low", "medium", "high")]},
    "logprobs": FLAG,
    "top_logprobs": whole(0, MOST_LOGPROBS),
}
CHAT = body(
    {"model": TEXT, "messages": {"type": "array", "items": message("system", "user", "assistant", "tool")}},
    {**SHARED, "tools": tools(closed({"type": one_of("function"), "function": function()}, "function"))},
    OLLAMA_BODY,
)
GENERATE = body(
    {"model": TEXT},
    {**SHARED, "prompt": TEXT, "suffix": TEXT, "system": TEXT, "raw": FLAG, "context": IDS},
    OLLAMA_BODY,
)
MACHINE = {
    "options": {**closed({name: harmless(name) for name in sorted(OPTIONS.harmless)}), **harmless("options")}
}
"""The field ``options`` of requests that generate nothing."""
EMBED = body(
    {"model": TEXT, "input": TEXTS}, {**NAME, **KEEP, **MACHINE, "truncate": FLAG, "dimensions": COUNT}
)
EMBEDDING = body({"model": TEXT, "prompt": TEXT}, {**NAME, **KEEP, **MACHINE})
SHOW = body({"model": TEXT}, {**NAME, "verbose": FLAG})
PULL = body({"model": TEXT}, {**NAME, "stream": FLAG}, PULL_BODY)


async def _body(call: ClientCall) -> tuple[Body, str]:
    """Fields of a request, and the name of its model without Ollama's tag ":latest"."""
    fields = Body(await call.json(), OLLAMA_BODY)
    return fields, call.models.known(_asked_name(call, fields, call.models.names[0]))


def _asked_name(call: ClientCall, fields: Body, usual: str = "") -> str:
    """Name of a request's model, from the field ``model`` or, in requests of older clients, ``name``."""
    old = fields.text("name")
    name = fields.model(old or usual)
    return name if name in call.models.names else name.removesuffix(":latest")


def _keep(call: ClientCall, fields: Body) -> Callable[[str], None]:
    """Read the field ``keep_alive``. Returns a function that applies it to a loaded model.

    Raises:
        InvalidRequest: the field is wrong, the models run on a cluster, or unloading needs an admin key.
    """
    given = fields.take("keep_alive")
    if given is None:
        return lambda name: None
    seconds = keep_alive_of(given)
    if seconds is not None and not call.models.local:
        raise InvalidRequest(f"keep_alive={brief(given)}: models on a cluster stay; leave it out")
    if seconds is not None and call.viewer.key and not call.viewer.admin:
        raise InvalidRequest(
            f"keep_alive={brief(given)}: others use the model too, so an admin key is needed to unload it; leave it out"
        )
    return lambda name: call.models.keep(name, seconds)


def _generates(
    read: Callable[[Body, ServedModel], Streaming], field: str
) -> Callable[[ClientCall], Awaitable[Response]]:
    """Handler that generates. A request without ``field`` only loads or unloads the model."""

    async def run(call: ClientCall) -> Response:
        fields, name = await _body(call)
        streams, keep = fields.flag("stream", True), _keep(call, fields)
        if not fields.has(field):
            fields.take(field)
            no_options(fields, f"a request without {field} has keep_alive")
            async with call.use(name):
                keep(name)
            reason = "unload" if call.models.left(name) == 0 else "load"
            message = {"role": "assistant", "content": ""}
            done = piece(name, **({"message": message} if field == "messages" else {"response": ""}))
            return answer({**done, "done": True, "done_reason": reason})

        def kept(llm: ServedModel) -> Streaming:
            asked = read(fields, llm)
            keep(name)
            return asked

        return await generated(call, name, kept, LINES if streams else None)

    return run


async def _embed(call: ClientCall) -> Response:
    start = time.perf_counter()
    fields, name = await _body(call)
    texts, truncate, keep = fields.texts("input"), fields.flag("truncate", True), _keep(call, fields)
    async with call.use(name) as llm:
        dimensions = fields.count("dimensions", 1, 1 << 24)
        if dimensions not in (None, llm.width):
            raise InvalidRequest(f"dimensions={dimensions}: the model's vectors have {llm.width}")
        no_options(fields, "an embedding has input and truncate")
        keep(name)

        def run() -> dict[str, Any]:
            encoded = llm.inputs.sentences(texts, truncate) if texts else []
            vectors = llm.embed_tokens(encoded).tolist() if texts else []
            tokens = sum(map(len, encoded))
            total = round(1e9 * (time.perf_counter() - start))
            times = {"total_duration": total, "load_duration": 0, "prompt_eval_count": tokens}
            return {"model": name, "embeddings": vectors, **times}

        return answer(await run_in_threadpool(run))


async def _embeddings(call: ClientCall) -> Response:
    """Older form of /api/embed: the vector of one prompt."""
    fields, name = await _body(call)
    prompt, keep = fields.text("prompt") or "", _keep(call, fields)
    no_options(fields, "an embedding has a prompt")
    async with call.use(name) as llm:
        keep(name)

        def embedded() -> Any:
            return llm.embed_tokens(llm.inputs.sentences([prompt]))

        return answer({"embedding": (await run_in_threadpool(embedded))[0].tolist()})


async def _show(call: ClientCall) -> Response:
    fields, name = await _body(call)
    verbose = fields.flag("verbose")
    no_options(fields, "the description of a model has verbose")
    async with call.use(name) as llm:
        return answer(await run_in_threadpool(models.shown, llm, verbose))


async def _pull(call: ClientCall) -> Response:
    """Download a model. The response is a stream of progress lines, or one object if ``stream`` is false."""
    fields = Body(await call.json(), PULL_BODY)
    name, streams = _asked_name(call, fields), fields.flag("stream", True)
    no_options(fields, "a download has a model and stream")
    if call.viewer.key and not call.viewer.admin:
        raise InvalidRequest(f"model={brief(name)}: an admin key is needed to download a model")
    if streams:
        return await event_stream(call, pulling(call.models, name), LINES)
    await call.unless_gone(call.models.pulled(name, Silent()))
    return answer({"status": "success"})


async def _tags(call: ClientCall) -> Response:
    found = [models.listed(name, call.models.llm(name)) for name in call.models.names]
    return answer({"models": found})


async def _running(call: ClientCall) -> Response:
    loaded = [(name, call.models.llm(name)) for name in call.models.loaded]
    return answer(
        {"models": [models.running(name, llm, call.models.left(name)) for name, llm in loaded if llm]}
    )


async def _version(call: ClientCall) -> Response:
    return answer({"version": SPOKEN})


OLLAMA = Api(
    "ollama",
    {
        "GET /api/version": Route(_version, "The version of this API."),
        "GET /api/tags": Route(_tags, "The models of this server."),
        "GET /api/ps": Route(_running, "The models in memory."),
        "POST /api/show": Route(_show, "All about a model.", SHOW),
        "POST /api/generate": Route(
            _generates(OllamaGenerate.of, "prompt"), "Answer a prompt.", GENERATE, LINES.media_type
        ),
        "POST /api/chat": Route(
            _generates(OllamaChat.of, "messages"), "Answer a conversation.", CHAT, LINES.media_type
        ),
        "POST /api/embed": Route(_embed, "Vectors of texts.", EMBED),
        "POST /api/embeddings": Route(_embeddings, "The vector of a text.", EMBEDDING),
        "POST /api/pull": Route(_pull, "Download a model.", PULL, LINES.media_type),
    },
    error_body,
    prefixes=("/api/",),
)
