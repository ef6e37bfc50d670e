"""Cohere's API for encoders: vectors and ranking. /v1/rerank is in ``llamacpp.py``, because its server has it too."""

from __future__ import annotations

from pellucid.serve.api import Api
from pellucid.serve.cohere.cohere_embedding import EMBED_V1, EMBED_V2, embedded_v1, embedded_v2
from pellucid.serve.cohere.meta import error_body
from pellucid.serve.cohere.ranking import RANKING, ranked_v2
from pellucid.serve.encoder_response import encoder_route

COHERE = Api(
    "cohere",
    {
        "POST /v1/embed": encoder_route("Vectors of texts.", EMBED_V1, embedded_v1),
        "POST /v2/embed": encoder_route("Vectors of texts in several formats.", EMBED_V2, embedded_v2),
        "POST /v2/rerank": encoder_route("Rank documents by a query.", RANKING, ranked_v2),
    },
    error_body,
    prefixes=("/v2/",),
)
