"""Routes for operators and tools: liveness, readiness, metrics, tokenization."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.api import Api, ClientCall, Route, answer
from pellucid.serve.body import Body
from pellucid.serve.chat.request import Conversation, prompt_of
from pellucid.serve.openai.answer import error_body
from pellucid.serve.openai.fields import PLAIN_BODY
from pellucid.serve.openapi import document
from pellucid.serve.schema import FLAG, IDS, OBJECT, TEXT, body, listed

MOST_TEXT = 1 << 20  # characters


async def _health(call: ClientCall) -> Response:
    """Liveness: the process answers."""
    return answer({"status": "ok", "loaded": call.models.loaded})


async def _ready(call: ClientCall) -> Response:
    """Readiness: every loaded or needed model can run. A model that is loaded on request does not count."""
    missing = call.models.missing
    return answer({"status": "waiting" if missing else "ok", "waiting": missing}, 503 if missing else 200)


async def _tokenize(call: ClientCall) -> Response:
    """Tokenize text or messages. Fields and defaults are vLLM's (``prompt``) or llama.cpp's (``content``).

    Control tokens in the text are parsed, as in both servers.
    """
    fields = Body(await call.json(), PLAIN_BODY)
    name, messages, content = call.model(fields), fields.take("messages"), fields.text("content")
    usual = messages is None and content is None
    special = fields.flag("add_special_tokens", fields.flag("add_special", usual))
    parses, pieces = fields.flag("parse_special", True), fields.flag("with_pieces")
    text = "" if messages is not None else fields.required("prompt") if content is None else content
    if not isinstance(text, str) or len(text) > MOST_TEXT:
        raise InvalidRequest(f"prompt={brief(text)}: must be a text of at most {MOST_TEXT:,} characters")
    async with call.use(name) as llm:

        def run() -> list[int]:
            if messages is not None:
                return prompt_of(llm, Conversation(messages, {}))
            return llm.tokenizer.encode(text, add_special=special, parse_special=parses)

        ids = await run_in_threadpool(run)
        tokens = (
            [{"id": one, "piece": _piece(llm.tokenizer.token_bytes(one))} for one in ids] if pieces else ids
        )
        return answer({"tokens": tokens, "count": len(ids), "max_model_len": llm.context})


def _piece(data: bytes) -> str | list[int]:
    """Text of a token; a list of its bytes if they are not valid UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


async def _detokenize(call: ClientCall) -> Response:
    fields = Body(await call.json(), PLAIN_BODY)
    name, tokens = call.model(fields), fields.required("tokens")
    async with call.use(name) as llm:
        size = llm.inputs.vocabulary
        if not isinstance(tokens, list) or not all(type(one) is int and 0 <= one < size for one in tokens):
            raise InvalidRequest(f"tokens={brief(tokens)}: must be a list of token ids below {size:,}")
        text = await run_in_threadpool(lambda: llm.tokenizer.decode(tokens, skip_special=False))
        return answer({"prompt": text, "content": text})


async def _metrics(call: ClientCall) -> Response:
    return Response(await run_in_threadpool(call.metrics.text), media_type=CONTENT_TYPE_LATEST)


async def _tokenizer_info(call: ClientCall) -> Response:
    """Facts about a tokenizer in vLLM's form. The query may name the ``model``; the default is the first model."""
    name = call.models.known(call.request.query_params.get("model", call.models.names[0]))
    async with call.use(name) as llm:
        tokenizer = llm.tokenizer
        named = {key: tokenizer.named_tokens.get(key) for key in ("bos_token", "eos_token", "pad_token")}
        return answer(
            {
                "tokenizer_class": type(tokenizer.model).__name__,
                "vocab_size": tokenizer.vocab_size,
                "model_max_length": llm.context,
                "chat_template": tokenizer.chat_template,
                **named,
            }
        )


async def _openapi(call: ClientCall) -> Response:
    return answer(document(call.models.names))


OPERATIONS = Api(
    "operations",
    {
        "GET /health": Route(_health, "Whether the server is alive."),
        "GET /ready": Route(_ready, "Whether requests can run: status 503 if a model has no replica."),
        "GET /metrics": Route(_metrics, "Numbers for Prometheus.", media="text/plain"),
        "GET /openapi.json": Route(_openapi, "This document."),
        "GET /tokenizer_info": Route(_tokenizer_info, "What clients must know of a model's tokenizer."),
        "POST /tokenize": Route(
            _tokenize,
            "The tokens of a text.",
            body(
                {},
                {
                    "model": TEXT,
                    "prompt": TEXT,
                    "content": TEXT,
                    "messages": listed(OBJECT),
                    "add_special_tokens": FLAG,
                    "add_special": FLAG,
                    "parse_special": FLAG,
                    "with_pieces": FLAG,
                },
            ),
        ),
        "POST /detokenize": Route(_detokenize, "The text of tokens.", body({"tokens": IDS}, {"model": TEXT})),
    },
    error_body,
)
