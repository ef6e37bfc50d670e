"""What operators and tools ask: whether the server is well, and the tokens of a text."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.api import Api, ClientCall, answer
from pellucid.serve.body import Body
from pellucid.serve.openai.answer import error_body
from pellucid.serve.openai.fields import OPENAI_BODY

MOST_TEXT = 1 << 20  # characters


async def _health(call: ClientCall) -> Response:
    return answer({"status": "ok", "loaded": call.models.loaded})


async def _tokenize(call: ClientCall) -> Response:
    body = Body(await call.json(), OPENAI_BODY)
    name, text = body.model(), body.required("prompt")
    special = body.take("add_special_tokens", True)
    if not isinstance(text, str) or len(text) > MOST_TEXT:
        raise InvalidRequest(f"prompt={brief(text)}: must be a text of at most {MOST_TEXT:,} characters")
    if not isinstance(special, bool):
        raise InvalidRequest(f"add_special_tokens={brief(special)}: must be true or false")
    async with call.models.use(name) as llm:
        ids = await run_in_threadpool(lambda: llm.tokenizer.encode(text, add_special=special))
        return answer({"tokens": ids, "count": len(ids), "max_model_len": llm.context})


async def _detokenize(call: ClientCall) -> Response:
    body = Body(await call.json(), OPENAI_BODY)
    name, tokens = body.model(), body.required("tokens")
    async with call.models.use(name) as llm:
        size = llm.inputs.vocabulary
        if not isinstance(tokens, list) or not all(type(one) is int and 0 <= one < size for one in tokens):
            raise InvalidRequest(f"tokens={brief(tokens)}: must be a list of token ids below {size:,}")
        return answer({"prompt": await run_in_threadpool(llm.tokenizer.decode, tokens)})


OPERATIONS = Api(
    "operations",
    {"GET /health": _health, "POST /tokenize": _tokenize, "POST /detokenize": _detokenize},
    error_body,
)
