"""vLLM's API for encoders: scores of pairs, labels, and what a model makes."""

from __future__ import annotations

from pellucid.serve.api import Api
from pellucid.serve.encoder_response import encoder_route
from pellucid.serve.openai.response_parts import error_body
from pellucid.serve.vllm.classification import CLASSIFICATION, classified
from pellucid.serve.vllm.pooling import POOLING, pooled
from pellucid.serve.vllm.scoring import SCORE, scored

SCORES = encoder_route("The relevance of pairs of texts.", SCORE, scored)
VLLM = Api(
    "vllm",
    {
        "POST /score": SCORES,
        "POST /v1/score": SCORES,
        "POST /classify": encoder_route("Scores of the labels of texts.", CLASSIFICATION, classified),
        "POST /pooling": encoder_route("What a model makes of texts.", POOLING, pooled),
    },
    error_body,
)
