"""/rerank: ranks documents by their relevance to a query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

from pellucid.encoders.ranking import relevance
from pellucid.errors import InvalidRequest
from pellucid.serve.request_body import BodyRules, BodyType, Count, ModelFields, Texts, listed_texts
from pellucid.serve.served_model import ServedModel


class RankingFields(ModelFields, frozen=True, kw_only=True):
    """Fields of /rerank. The documents are in ``documents``, or in ``texts`` as Hugging Face's clients send them."""

    query: Annotated[str, Meta(min_length=1)]
    documents: Texts | None = None
    texts: Texts | None = None
    top_n: Count | None = None
    return_documents: bool = False
    return_text: bool = False
    truncate: bool = True


RANKING = BodyType(RankingFields, BodyRules(only={"raw_scores": False}), required=())


@dataclass(frozen=True)
class RankingRequest:
    """A request for the ``top`` best of ``documents``. With ``returned``, the response includes their text.

    With ``plain``, the response has the form of Hugging Face's text-embeddings-inference.
    """

    query: str
    documents: Sequence[str]
    top: int
    returned: bool
    truncate: bool
    plain: bool

    @classmethod
    def of(cls, fields: RankingFields) -> RankingRequest:
        """Read the fields of a request. Raises InvalidRequest if a field is wrong."""
        plain = fields.texts is not None
        name, other = ("texts", "documents") if plain else ("documents", "texts")
        flag = "return_documents" if plain else "return_text"
        if getattr(fields, other) is not None or getattr(fields, flag):
            wrong = other if getattr(fields, other) is not None else flag
            raise InvalidRequest(f"{wrong} does not go with {name}: leave it out")
        documents = getattr(fields, name)
        if documents is None:
            raise InvalidRequest("documents is missing: the request must have it")
        if not documents:
            raise InvalidRequest(f"{name}=[]: must have at least one text")
        documents = listed_texts(name, documents)
        returned = fields.return_text if plain else fields.return_documents
        return cls(fields.query, documents, fields.top_n or len(documents), returned, fields.truncate, plain)

    def answer(self, llm: ServedModel, name: str) -> dict[str, Any] | list[Any]:
        """Compute the scores and return the response body of the model ``name``."""
        scores, tokens = relevance(llm, self.query, self.documents, self.truncate)
        order = sorted(range(len(scores)), key=lambda at: -scores[at])[: self.top]
        if self.plain:
            return [
                {
                    "index": at,
                    "score": float(scores[at]),
                    **({"text": self.documents[at]} if self.returned else {}),
                }
                for at in order
            ]
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
