"""Ollama's API: chat, generation, embeddings, models."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.encoders.tasks import embed, vector_width
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.api import JSON_LINES, Api, ClientCall, Route, event_stream, json_response
from pellucid.serve.apis import ollama_fields
from pellucid.serve.apis.ollama_fields import (
    CHAT,
    EMBED,
    GENERATE,
    OLD_EMBED,
    PULL,
    SHOW,
    GenerateOptions,
    OllamaFields,
    chunk,
    error_body,
    keep_alive_of,
    refuse_options,
)
from pellucid.serve.apis.ollama_responses import OllamaChat, OllamaGenerate, pulling
from pellucid.serve.encoder_inputs import check_task, encoded_texts, prompt_of_name
from pellucid.serve.generation_response import Streaming, generation_response
from pellucid.serve.request_body import BodyType, RequestBody, listed_texts
from pellucid.serve.served_model import ServedModel
from pellucid.weights.sources.source import Silent

G = TypeVar("G", bound=GenerateOptions)
SPOKEN = "0.12.0"
"""Version of Ollama whose API the server implements, for clients that request the version."""


def _asked_name(call: ClientCall, fields: OllamaFields) -> str:
    """Name of a request's model, from the field ``model`` or ``name``; empty if the request has none."""
    name = fields.model or fields.name or ""
    return name if name in call.models.names else name.removesuffix(":latest")


def _model(call: ClientCall, fields: OllamaFields) -> str:
    """Name of the model that answers, without Ollama's tag ":latest". The server's first model is the default."""
    return call.models.known(_asked_name(call, fields) or call.models.names[0])


def _keep(call: ClientCall, given: str | float | None) -> Callable[[str], None]:
    """Read the field ``keep_alive``. Returns a function that applies it to a loaded model.

    Raises:
        InvalidRequest: the field is wrong, the models run on a cluster, or unloading needs an admin key.
    """
    if given is None:
        return lambda name: None
    seconds = keep_alive_of(given)
    if seconds is not None and not call.models.local:
        raise InvalidRequest(f"keep_alive={brief(given)}: models on a cluster stay loaded; leave keep_alive out")
    if seconds is not None and call.viewer.key and not call.viewer.admin:
        raise InvalidRequest(
            f"keep_alive={brief(given)}: unloading the model affects other clients and needs an admin key; "
            "leave keep_alive out"
        )
    return lambda name: call.models.keep(name, seconds)


def _generates(
    body_type: BodyType[G], read: Callable[[RequestBody[G], ServedModel], Streaming], field: str
) -> Callable[[ClientCall], Awaitable[Response]]:
    """Handler that generates. A request without ``field`` only loads or unloads the model."""

    async def run(call: ClientCall) -> Response:
        body = await call.read(body_type)
        name, keep = _model(call, body.fields), _keep(call, body.fields.keep_alive)
        if not getattr(body.fields, field):
            refuse_options(body, (field, "stream"), f"a request without {field} accepts keep_alive")
            async with call.use(name):
                keep(name)
            reason = "unload" if call.models.expires_in(name) == 0 else "load"
            message = {"role": "assistant", "content": ""}
            done = chunk(name, **({"message": message} if field == "messages" else {"response": ""}))
            return json_response({**done, "done": True, "done_reason": reason})

        def read_and_keep(llm: ServedModel) -> Streaming:
            request = read(body, llm)
            keep(name)
            return request

        return await generation_response(call, name, read_and_keep, JSON_LINES if body.fields.stream else None)

    return run


async def _embed(call: ClientCall) -> Response:
    start = time.perf_counter()
    body = await call.read(EMBED)
    fields, texts = body.fields, listed_texts("input", body.fields.input)
    name, keep = _model(call, fields), _keep(call, fields.keep_alive)
    refuse_options(
        body,
        ("input", "truncate", "dimensions", "prompt_name"),
        "/api/embed accepts input, truncate, dimensions and prompt_name",
    )
    async with call.use(name) as llm:
        check_task(llm, "embed")
        width, prompt = vector_width(llm, fields.dimensions), prompt_of_name(llm, fields.prompt_name)
        keep(name)

        def run() -> dict[str, Any]:
            encoded = encoded_texts(llm, texts, fields.truncate, prompt)
            vectors = embed(llm, encoded, width).tolist() if texts else []
            tokens = sum(map(len, encoded))
            total = round(1e9 * (time.perf_counter() - start))
            times = {"total_duration": total, "load_duration": 0, "prompt_eval_count": tokens}
            return {"model": name, "embeddings": vectors, **times}

        return json_response(await run_in_threadpool(run))


async def _embeddings(call: ClientCall) -> Response:
    """Older form of /api/embed: the vector of one prompt."""
    body = await call.read(OLD_EMBED)
    prompt, keep = body.fields.prompt, _keep(call, body.fields.keep_alive)
    refuse_options(body, ("prompt",), "/api/embeddings accepts prompt")
    name = _model(call, body.fields)
    async with call.use(name) as llm:
        check_task(llm, "embed")
        keep(name)

        def embedded() -> Any:
            return embed(llm, llm.inputs.sentences([prompt]))

        return json_response({"embedding": (await run_in_threadpool(embedded))[0].tolist()})


async def _show(call: ClientCall) -> Response:
    fields = (await call.read(SHOW)).fields
    async with call.use(_model(call, fields)) as llm:
        return json_response(await run_in_threadpool(ollama_fields.model_details, llm, fields.verbose))


async def _pull(call: ClientCall) -> Response:
    """Download a model. The response is a stream of progress lines, or one object if ``stream`` is false."""
    fields = (await call.read(PULL)).fields
    name = _asked_name(call, fields)
    if not name:
        raise InvalidRequest("model is missing: the request must have it")
    if call.viewer.key and not call.viewer.admin:
        raise InvalidRequest(f"model={brief(name)}: an admin key is needed to download a model")
    if fields.stream:
        return await event_stream(call, pulling(call.models, name), JSON_LINES)
    await call.cancelled_on_disconnect(call.models.pulled(name, Silent()))
    return json_response({"status": "success"})


async def _tags(call: ClientCall) -> Response:
    entries = [ollama_fields.model_entry(name, call.models.llm(name)) for name in call.models.names]
    return json_response({"models": entries})


async def _running(call: ClientCall) -> Response:
    loaded = [(name, call.models.llm(name)) for name in call.models.loaded]
    return json_response(
        {
            "models": [
                ollama_fields.running_model(name, llm, call.models.expires_in(name)) for name, llm in loaded if llm
            ]
        }
    )


async def _version(call: ClientCall) -> Response:
    return json_response({"version": SPOKEN})


OLLAMA = Api(
    "ollama",
    {
        "GET /api/version": Route(_version, "The version of this API."),
        "GET /api/tags": Route(_tags, "The models of this server."),
        "GET /api/ps": Route(_running, "The models in memory."),
        "POST /api/show": Route(_show, "Details of a model.", SHOW),
        "POST /api/generate": Route(
            _generates(GENERATE, OllamaGenerate.of, "prompt"), "Answer a prompt.", GENERATE, JSON_LINES.media_type
        ),
        "POST /api/chat": Route(
            _generates(CHAT, OllamaChat.of, "messages"), "Answer a conversation.", CHAT, JSON_LINES.media_type
        ),
        "POST /api/embed": Route(_embed, "Vectors of texts.", EMBED),
        "POST /api/embeddings": Route(_embeddings, "The vector of a text.", OLD_EMBED),
        "POST /api/pull": Route(_pull, "Download a model.", PULL, JSON_LINES.media_type),
    },
    error_body,
    prefixes=("/api/",),
)
