"""llama.cpp's own paths: completion, infill, embedding, ranking, decisions. Its chat is in ``llamacpp_chat.py``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.errors import QueueFull
from pellucid.serve.api import DATA_SSE, Api, ClientCall, Route, StreamForm, json_response
from pellucid.serve.cohere.ranking import RANKING, ranked
from pellucid.serve.encoder_response import encoder_route
from pellucid.serve.generation_response import Streaming, generation_response
from pellucid.serve.llamacpp.error_form import error_body
from pellucid.serve.llamacpp.generation_fields import LlamaFields
from pellucid.serve.llamacpp.infill import INFILL, infill_request
from pellucid.serve.llamacpp.llama_completion import COMPLETION, LlamaCompletion
from pellucid.serve.llamacpp.llama_embedding import EMBEDDING, llama_embedding
from pellucid.serve.llamacpp.properties import properties, slots
from pellucid.serve.llamacpp.systemone import SYSTEMONE, systemone
from pellucid.serve.request_body import BodyType, RequestBody
from pellucid.serve.served_model import ServedModel

L = TypeVar("L", bound=LlamaFields)
EVENTS = StreamForm(DATA_SSE.media_type, DATA_SSE.encode)


def _generates(
    body_type: BodyType[L], read: Callable[[RequestBody[L], ServedModel], Streaming]
) -> Callable[[ClientCall], Awaitable[Response]]:
    async def run(call: ClientCall) -> Response:
        body = await call.read(body_type)
        name, stream = call.model(body.fields.model), EVENTS if body.fields.stream else None
        return await generation_response(call, name, lambda llm: read(body, llm), stream)

    return run


async def _props(call: ClientCall) -> Response:
    name = call.queried_model()
    async with call.use(name) as llm:
        return json_response(await run_in_threadpool(properties, llm, name))


async def _slots(call: ClientCall) -> Response:
    """Slots of the client's running sequences. With an admin key, slots of all running sequences."""
    name = call.queried_model()
    async with call.use(name) as llm:
        listed = slots(llm, [one for one in call.live.visible_to(call.viewer) if one.model == name])
    if call.request.query_params.get("fail_on_no_slot") and all(one["is_processing"] for one in listed):
        raise QueueFull(f"all of {len(listed):,} slots are busy: retry later")
    return json_response(listed)


COMPLETE = Route(
    _generates(COMPLETION, LlamaCompletion.of), "Continue a text.", COMPLETION, EVENTS.media_type
)
EMBED = encoder_route("Vectors of texts.", EMBEDDING, llama_embedding)
RERANK = encoder_route("Rank documents by a query.", RANKING, ranked)
LLAMACPP = Api(
    "llama.cpp",
    {
        "POST /completion": COMPLETE,
        "POST /completions": COMPLETE,
        "POST /infill": Route(
            _generates(INFILL, infill_request), "Fill a gap in a text.", INFILL, EVENTS.media_type
        ),
        "POST /embedding": EMBED,
        "POST /embeddings": EMBED,
        **{f"POST {path}": RERANK for path in ("/rerank", "/reranking", "/v1/rerank", "/v1/reranking")},
        "POST /v1/systemone": encoder_route("Answer typed questions about a state.", SYSTEMONE, systemone),
        "GET /props": Route(_props, "Properties of the server and a model."),
        "GET /slots": Route(_slots, "The running sequences."),
    },
    error_body,
)
