"""The API of Hugging Face's text-embeddings-inference. /rerank and /tokenize are shared with other APIs."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.serve.api import Api, ClientCall, Route, json_response
from pellucid.serve.encoder_response import encoder_route
from pellucid.serve.tei.any_task import ANY_TASK, answered
from pellucid.serve.tei.error_form import error_body
from pellucid.serve.tei.information import information
from pellucid.serve.tei.prediction import PREDICT, predicted
from pellucid.serve.tei.tei_embedding import (
    EMBED,
    EMBED_OTHERS,
    SIMILARITY,
    embedded,
    embedded_all,
    embedded_sparse,
    similarities,
)
from pellucid.serve.tei.tei_tokens import DECODE, decoded


async def _info(call: ClientCall) -> Response:
    """Facts about the model that the query names; by default the server's first model."""
    name = call.queried_model()
    async with call.use(name) as llm:
        return json_response(await run_in_threadpool(information, llm, name))


TEI = Api(
    "text-embeddings-inference",
    {
        "POST /": encoder_route("The request of the model's task.", ANY_TASK, answered),
        "POST /embed": encoder_route("Vectors of texts.", EMBED, embedded),
        "POST /embed_all": encoder_route("Vectors of the tokens of texts.", EMBED_OTHERS, embedded_all),
        "POST /embed_sparse": encoder_route("Sparse vectors of texts.", EMBED_OTHERS, embedded_sparse),
        "POST /predict": encoder_route("Scores of the labels of texts.", PREDICT, predicted),
        "POST /similarity": encoder_route("Cosines of a text and others.", SIMILARITY, similarities),
        "POST /decode": encoder_route("The texts of token ids.", DECODE, decoded),
        "GET /info": Route(_info, "Facts about a model."),
    },
    error_body,
)
