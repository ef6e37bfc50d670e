"""llama.cpp's own paths: completion, infill, embedding, ranking. Its chat is in ``llamacpp_chat.py``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.errors import QueueFull
from pellucid.serve.api import DATA, Api, ClientCall, Route, StreamForm, answer
from pellucid.serve.body import MOST_CHOICES, Body
from pellucid.serve.generate import Streaming, generated
from pellucid.serve.llamacpp.completion import LlamaCompletion
from pellucid.serve.llamacpp.embedding import EMBEDDING_BODY, LlamaEmbedding
from pellucid.serve.llamacpp.fields import LLAMACPP_BODY
from pellucid.serve.llamacpp.infill import MOST_FILES, infill_request
from pellucid.serve.llamacpp.properties import properties, slots
from pellucid.serve.llamacpp.ranking import RERANK_BODY, RankingRequest
from pellucid.serve.model import ServedModel
from pellucid.serve.openai.answer import error_body
from pellucid.serve.schema import (
    COUNT,
    FLAG,
    PROMPT,
    TEXT,
    Schema,
    any_of,
    body,
    closed,
    generation_options,
    listed,
    whole,
)

EVENTS = StreamForm(DATA.media_type, DATA.encode)
NAMES: Schema = {"type": "array", "items": TEXT}
GENERATION = {
    **generation_options("watch", "prompt_logprobs", "logprobs_of"),
    "samplers": NAMES,
    "post_sampling_probs": FLAG,
    "return_tokens": FLAG,
    "return_progress": FLAG,
    "timings_per_token": FLAG,
    "response_fields": NAMES,
    "stream": FLAG,
}
PART = {"anyOf": [TEXT, {"type": "integer", "minimum": 0}]}
ONE = any_of(
    TEXT,
    {"type": "array", "items": PART, "minItems": 1},
    closed({"prompt_string": TEXT, "multimodal_data": {"type": "array", "maxItems": 0}}, "prompt_string"),
)
PROMPTS = any_of(*ONE["anyOf"], {"type": "array", "items": ONE, "minItems": 1})
COMPLETE = body(
    {"prompt": PROMPTS},
    {**GENERATION, "model": TEXT, "n_cmpl": whole(1, MOST_CHOICES), "n": whole(1, MOST_CHOICES)},
    LLAMACPP_BODY,
)
FILE = {"type": "object", "properties": {"filename": TEXT, "text": TEXT}, "required": ["text"]}
FILL = body(
    {},
    {
        **GENERATION,
        "model": TEXT,
        "input_prefix": TEXT,
        "input_suffix": TEXT,
        "prompt": TEXT,
        "input_extra": {"type": "array", "items": FILE, "maxItems": MOST_FILES},
    },
    LLAMACPP_BODY,
)
EMBED = body(
    {},
    {"model": TEXT, "content": PROMPT, "input": PROMPT, "embd_normalize": whole(-1, 1024)},
    EMBEDDING_BODY,
)
RANK = body(
    {"query": TEXT},
    {
        "model": TEXT,
        "documents": listed(TEXT),
        "texts": listed(TEXT),
        "top_n": COUNT,
        "return_documents": FLAG,
        "return_text": FLAG,
        "truncate": FLAG,
    },
    RERANK_BODY,
)


def _generates(read: Callable[[Body, ServedModel], Streaming]) -> Callable[[ClientCall], Awaitable[Response]]:
    async def run(call: ClientCall) -> Response:
        fields = Body(await call.json(), LLAMACPP_BODY)
        name, streams = call.model(fields), fields.flag("stream")
        return await generated(call, name, lambda llm: read(fields, llm), EVENTS if streams else None)

    return run


async def _embedding(call: ClientCall) -> Response:
    fields = Body(await call.json(), EMBEDDING_BODY)
    async with call.use(call.model(fields)) as llm:
        return answer(await run_in_threadpool(lambda: LlamaEmbedding.of(fields, llm).answer()))


async def _rerank(call: ClientCall) -> Response:
    fields = Body(await call.json(), RERANK_BODY)
    name, asked = call.model(fields), RankingRequest.of(fields)
    async with call.use(name) as llm:
        return answer(await run_in_threadpool(asked.answer, llm, name))


def _queried(call: ClientCall) -> str:
    """Name of the model in the query string; by default the server's first model."""
    return call.models.known(call.request.query_params.get("model") or call.models.names[0])


async def _props(call: ClientCall) -> Response:
    name = _queried(call)
    async with call.use(name) as llm:
        return answer(await run_in_threadpool(properties, llm, name))


async def _slots(call: ClientCall) -> Response:
    """Slots of the client's own running sequences; of all running sequences for an admin key."""
    name = _queried(call)
    async with call.use(name) as llm:
        found = slots(llm, [one for one in call.live.seen_by(call.viewer) if one.model == name])
    if call.request.query_params.get("fail_on_no_slot") and all(one["is_processing"] for one in found):
        raise QueueFull(f"all of {len(found):,} slots are busy: retry later")
    return answer(found)


COMPLETION = Route(_generates(LlamaCompletion.of), "Continue a text.", COMPLETE, EVENTS.media_type)
EMBEDDING = Route(_embedding, "Vectors of texts.", EMBED)
RANKING = Route(_rerank, "Rank documents by a query.", RANK)
LLAMACPP = Api(
    "llama.cpp",
    {
        "POST /completion": COMPLETION,
        "POST /completions": COMPLETION,
        "POST /infill": Route(_generates(infill_request), "Fill a gap in a text.", FILL, EVENTS.media_type),
        "POST /embedding": EMBEDDING,
        "POST /embeddings": EMBEDDING,
        **{f"POST {path}": RANKING for path in ("/rerank", "/reranking", "/v1/rerank", "/v1/reranking")},
        "GET /props": Route(_props, "How the server and a model are."),
        "GET /slots": Route(_slots, "The texts that are being made."),
    },
    error_body,
)
