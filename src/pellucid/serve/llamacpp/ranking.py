"""/rerank: documents by how near their vectors are to the query's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.body import Body, BodyForm
from pellucid.serve.model import ServedModel

RERANK_BODY = BodyForm(harmless=frozenset({"return_documents", "return_text", "raw_scores", "truncate"}))


@dataclass(frozen=True)
class RankingRequest:
    """The ``top`` best of ``documents`` are asked for."""

    query: str
    documents: Sequence[str]
    top: int

    @classmethod
    def of(cls, body: Body) -> RankingRequest:
        """Read a body; llama.cpp calls the documents "documents" or "texts".

        Raises:
            InvalidRequest: a field is wrong; the message names it.
        """
        query = body.required("query")
        if not isinstance(query, str) or not query:
            raise InvalidRequest(f"query={brief(query)}: must be a text")
        name = "texts" if body.has("texts") else "documents"
        documents = body.texts(name)
        if not documents:
            raise InvalidRequest(f"{name}=[]: must have at least one text")
        top = body.count("top_n", 1, 1 << 31) or len(documents)
        if left := body.rest():
            raise InvalidRequest(
                f"unknown field {brief(min(left))}: a ranking has query, documents and top_n"
            )
        return cls(query, documents, top)

    def answer(self, llm: ServedModel, name: str) -> dict[str, Any]:
        """Compute the vectors, and return the body of an answer of the model ``name``: scores are cosines."""
        encoded = llm.inputs.sentences([self.query, *self.documents], truncate=True)
        vectors = llm.embed_tokens(encoded)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        scores = vectors[1:] @ vectors[0]
        order = np.argsort(-scores, kind="stable")[: self.top]
        tokens = sum(map(len, encoded))
        return {
            "model": name,
            "object": "list",
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "results": [{"index": int(at), "relevance_score": float(scores[at])} for at in order],
        }
