"""What llama.cpp's server has beside the other APIs: filling in, and ranking documents."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.serve.api import DATA, Api, ClientCall, Route, StreamForm, answer
from pellucid.serve.body import Body
from pellucid.serve.generate import generated
from pellucid.serve.llamacpp.infill import INFILL_BODY, MOST_FILES, InfillRequest
from pellucid.serve.llamacpp.ranking import RERANK_BODY, RankingRequest
from pellucid.serve.openai.answer import error_body
from pellucid.serve.schema import COUNT, FLAG, LOGPROBS, OBJECT, TEXT, body, generation_options, listed

EVENTS = StreamForm(DATA.media_type, DATA.encode)
FILL = body(
    {},
    {
        **generation_options("watch", *LOGPROBS),
        "model": TEXT,
        "input_prefix": TEXT,
        "input_suffix": TEXT,
        "prompt": TEXT,
        "input_extra": {"type": "array", "items": OBJECT, "maxItems": MOST_FILES},
        "n_predict": {"type": "integer", "minimum": -1},
        "stream": FLAG,
    },
    INFILL_BODY,
)
RANK = body(
    {"query": TEXT, "documents": listed(TEXT)},
    {"model": TEXT, "texts": listed(TEXT), "top_n": COUNT},
    RERANK_BODY,
)


async def _infill(call: ClientCall) -> Response:
    fields = Body(await call.json(), INFILL_BODY)
    name, streams = fields.model_or(call.models.names[0]), fields.flag("stream")
    return await generated(call, name, lambda llm: InfillRequest.of(fields, llm), EVENTS if streams else None)


async def _rerank(call: ClientCall) -> Response:
    fields = Body(await call.json(), RERANK_BODY)
    name, asked = fields.model_or(call.models.names[0]), RankingRequest.of(fields)
    async with call.models.use(name) as llm:
        return answer(await run_in_threadpool(asked.answer, llm, name))


RANKING = Route(_rerank, "Rank documents by a query.", RANK)
LLAMACPP = Api(
    "llama.cpp",
    {
        "POST /infill": Route(_infill, "Fill a gap in a text.", FILL, EVENTS.media_type),
        **{f"POST {path}": RANKING for path in ("/rerank", "/reranking", "/v1/rerank", "/v1/reranking")},
    },
    error_body,
)
