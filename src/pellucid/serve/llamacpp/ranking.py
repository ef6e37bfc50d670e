"""/rerank: ranks documents by the similarity of their vectors to the query's vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.body import Body, BodyForm
from pellucid.serve.model import ServedModel

RERANK_BODY = BodyForm(only={"raw_scores": False})


@dataclass(frozen=True)
class RankingRequest:
    """A request for the ``top`` best of ``documents``. ``returned``: the response includes their text.

    ``plain``: the form of Hugging Face's text-embeddings-inference, where the field of the documents is "texts".
    """

    query: str
    documents: Sequence[str]
    top: int
    returned: bool
    truncate: bool
    plain: bool

    @classmethod
    def of(cls, body: Body) -> RankingRequest:
        """Read a body. As in llama.cpp, the field of the documents is "documents" or "texts".

        Raises:
            InvalidRequest: a field is wrong; the message names it.
        """
        query = body.required("query")
        if not isinstance(query, str) or not query:
            raise InvalidRequest(f"query={brief(query)}: must be a text")
        plain = body.holds("texts")
        name = "texts" if plain else "documents"
        documents = body.texts(name)
        if not documents:
            raise InvalidRequest(f"{name}=[]: must have at least one text")
        top = body.count("top_n", 1, 1 << 31) or len(documents)
        returned, truncate = (
            body.flag("return_text" if plain else "return_documents"),
            body.flag("truncate", True),
        )
        if left := body.rest():
            raise InvalidRequest(
                f"unknown field {brief(min(left))}: a ranking has query, {name}, top_n, truncate and "
                f"{'return_text' if plain else 'return_documents'}"
            )
        return cls(query, documents, top, returned, truncate, plain)

    def answer(self, llm: ServedModel, name: str) -> dict[str, Any] | list[Any]:
        """Compute the vectors and return the response body of the model ``name``. Scores are cosines."""
        encoded = llm.inputs.sentences([self.query, *self.documents], self.truncate)
        vectors = llm.embed_tokens(encoded)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        scores = vectors[1:] @ vectors[0]
        order = np.argsort(-scores, kind="stable")[: self.top].tolist()
        if self.plain:
            return [
                {
                    "index": at,
                    "score": float(scores[at]),
                    **({"text": self.documents[at]} if self.returned else {}),
                }
                for at in order
            ]
        tokens = sum(map(len, encoded))
        results = [
            {
                "index": at,
                "relevance_score": float(scores[at]),
                **({"document": {"text": self.documents[at]}} if self.returned else {}),
            }
            for at in order
        ]
        return {
            "model": name,
            "object": "list",
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "results": results,
        }
