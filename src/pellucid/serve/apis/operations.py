"""Routes for operators and tools: liveness, readiness, metrics, tokenization, /openapi.json."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

import pellucid
from pellucid.base_llm import BaseLLM
from pellucid.errors import InvalidRequest, brief
from pellucid.serve.api import Api, ClientCall, Route, json_response, known_apis
from pellucid.serve.apis.tei import tokens_of
from pellucid.serve.chat.chat_run import Conversation, prompt_of
from pellucid.serve.chat.messages import ChatMessage
from pellucid.serve.openai_parts import error_body
from pellucid.serve.request_body import BodyType, ModelFields, RequestBody, Texts, TokenId, listed_texts
from pellucid.serve.routes import model_route, plain_route

ANSWER = {"type": ["object", "array"]}
STATUSES = {
    "400": "A field is wrong; the message names it, its value and the limit.",
    "401": "A key is needed.",
    "403": "The host or the origin is not allowed.",
    "404": "The server does not have this model.",
    "413": "The body is too long.",
    "408": "The request's deadline has passed.",
    "503": "The queue is full, or memory is short: retry after Retry-After seconds.",
}


def document(models: Sequence[str]) -> dict[str, Any]:
    """OpenAPI document of a server with these models."""
    paths: dict[str, dict[str, Any]] = {}
    for api in known_apis().values():
        for name, route in api.routes.items():
            method, path = name.split(" ")
            shown = re.sub(r":\w+}", "}", path)
            paths.setdefault(shown, {})[method.lower()] = _operation(api, name, route, models)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Pellucid", "version": pellucid.__version__},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }


def _operation(api: Api, name: str, route: Route, models: Sequence[str]) -> dict[str, Any]:
    good: dict[str, Any] = {
        route.media: {"schema": ANSWER if route.media == "application/json" else {"type": "string"}}
    }
    if route.stream:
        good[route.stream] = {"schema": {}}  # OpenAPI has no schema for events
    error = {"application/json": {"schema": _like(api.error(400, "the message"))}}
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", name).strip("_").lower(),
        "summary": route.summary,
        "tags": [api.name],
        "responses": {
            "200": {"description": "The answer.", "content": good},
            **{status: {"description": text, "content": error} for status, text in STATUSES.items()},
        },
    }
    if route.body is not None:
        properties = dict(route.body.schema["properties"])
        if "model" in properties:
            properties["model"] = {"type": "string", "enum": list(models)}
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": {**route.body.schema, "properties": properties}}},
        }
    if parameters := re.findall(r"{(\w+)", name):
        schemas = {"name": {"type": "string", "enum": list(models)}}
        operation["parameters"] = [
            {"name": one, "in": "path", "required": True, "schema": schemas.get(one, {"type": "string"})}
            for one in parameters
        ]
    return operation


def _like(example: Any) -> dict[str, Any]:
    """JSON schema of values like an example."""
    if not isinstance(example, dict):
        return {"type": "string"} if isinstance(example, str) else {}
    properties = {name: _like(value) for name, value in example.items()}
    return {"type": "object", "properties": properties, "required": list(example)}


MAX_TEXT = 1 << 20  # characters


class TokenizeFields(ModelFields, frozen=True, kw_only=True):
    """Fields of /tokenize: a text in ``prompt`` (vLLM) or ``content`` (llama.cpp), messages, or texts in ``inputs``.

    ``inputs`` and ``prompt_name`` are from text-embeddings-inference, and so is the form of the response to them.
    """

    prompt: str | None = None
    content: str | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1)] | None = None
    inputs: Texts | None = None
    prompt_name: str | None = None
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeFields(ModelFields, frozen=True, kw_only=True):
    """Fields of /detokenize."""

    tokens: list[TokenId]


TOKENIZE = BodyType(TokenizeFields)


async def _ready(call: ClientCall) -> Response:
    """Readiness: every loaded or needed model can run. A model that loads at its first request is not needed before."""
    missing = call.models.missing
    degraded = call.models.degraded
    status = "waiting" if missing else "degraded" if degraded else "ok"
    problem = {"problem": degraded} if degraded else {}
    return json_response({"status": status, "waiting": missing, **problem}, 503 if missing else 200)


async def _tokenize(call: ClientCall) -> Response:
    """Tokenize text or messages. Fields and defaults are vLLM's (``prompt``) or llama.cpp's (``content``).

    Control tokens in the text are parsed, as in both servers.
    """
    body = await call.read(TOKENIZE)
    fields, name, messages = body.fields, call.model(body.fields.model), body.raw.get("messages")
    if fields.inputs is not None:
        return await _tokenize_inputs(call, fields, fields.inputs, name)
    if fields.prompt_name is not None:
        raise InvalidRequest("prompt_name goes with inputs only: leave it out")
    special = fields.add_special if fields.add_special_tokens is None else fields.add_special_tokens
    if special is None:
        special = messages is None and fields.content is None
    text = fields.prompt if fields.content is None else fields.content
    if messages is not None:
        text = ""
    if text is None:
        raise InvalidRequest("prompt is missing: the request must have it")
    if len(text) > MAX_TEXT:
        raise InvalidRequest(f"prompt={brief(text)}: must be a text of at most {MAX_TEXT:,} characters")
    async with call.use(name) as llm:

        def run() -> list[int]:
            if messages is not None:
                return prompt_of(llm, Conversation(messages, {}))
            return llm.tokenizer.encode(text, add_special=special, parse_special=fields.parse_special)

        ids = await run_in_threadpool(run)
        tokens = (
            [{"id": one, "piece": _piece(llm.tokenizer.token_bytes(one))} for one in ids] if fields.with_pieces else ids
        )
        return json_response({"tokens": tokens, "count": len(ids), "max_model_len": llm.context})


async def _tokenize_inputs(call: ClientCall, fields: TokenizeFields, inputs: str | list[str], name: str) -> Response:
    """Tokenize texts in the form of text-embeddings-inference: a list of tokens for each text."""
    for odd in ("prompt", "content", "messages", "with_pieces"):
        if getattr(fields, odd):
            raise InvalidRequest(f"{odd} does not go with inputs: leave it out")
    texts = listed_texts("inputs", inputs)
    if any(len(text) > MAX_TEXT for text in texts):
        raise InvalidRequest(f"inputs={brief(inputs)}: must be texts of at most {MAX_TEXT:,} characters")
    special = fields.add_special if fields.add_special_tokens is None else fields.add_special_tokens
    async with call.use(name) as llm:
        found = await run_in_threadpool(
            tokens_of, llm, texts, special is not False, fields.parse_special, fields.prompt_name
        )
        return json_response(found)


def _piece(data: bytes) -> str | list[int]:
    """Text of a token; a list of the token's bytes if the bytes are not valid UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


def _detokenized(body: RequestBody[DetokenizeFields], llm: BaseLLM[Any], name: str, number: str) -> dict[str, Any]:
    tokens, size = body.fields.tokens, llm.inputs.vocabulary
    if any(token >= size for token in tokens):
        raise InvalidRequest(f"tokens={brief(tokens)}: must be a list of token ids below {size:,}")
    text = llm.tokenizer.decode(tokens, skip_special=False)
    return {"prompt": text, "content": text}


async def _metrics(call: ClientCall) -> Response:
    return Response(await run_in_threadpool(call.metrics.text), media_type=CONTENT_TYPE_LATEST)


async def _tokenizer_info(call: ClientCall) -> Response:
    """Facts about a tokenizer in vLLM's form. The query may name the ``model``; the default is the first model."""
    name = call.models.known(call.request.query_params.get("model", call.models.names[0]))
    async with call.use(name) as llm:
        tokenizer = llm.tokenizer
        named = {key: tokenizer.named_tokens.get(key) for key in ("bos_token", "eos_token", "pad_token")}
        return json_response(
            {
                "tokenizer_class": type(tokenizer.model).__name__,
                "vocab_size": tokenizer.vocab_size,
                "model_max_length": llm.context,
                "chat_template": tokenizer.chat_template,
                **named,
            }
        )


OPERATIONS = Api(
    "operations",
    {
        "GET /health": plain_route(
            "Liveness of the server.", lambda call: {"status": "ok", "loaded": call.models.loaded}
        ),
        "GET /ready": Route(_ready, "Readiness: status 503 if a model has no replica."),
        "GET /metrics": Route(_metrics, "Metrics for Prometheus.", media="text/plain"),
        "GET /openapi.json": plain_route("This document.", lambda call: document(call.models.names)),
        "GET /tokenizer_info": Route(_tokenizer_info, "Facts about a model's tokenizer."),
        "POST /tokenize": Route(_tokenize, "The tokens of a text.", TOKENIZE),
        "POST /detokenize": model_route("The text of tokens.", BodyType(DetokenizeFields), _detokenized),
    },
    error_body,
)
