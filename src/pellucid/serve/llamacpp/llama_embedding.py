"""/embedding and /embeddings in llama.cpp's own form: for each prompt a list of vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from pellucid.encoders.embedding import embed, token_vectors
from pellucid.errors import ContextOverflow, InvalidRequest
from pellucid.serve.encoder_inputs import check_task
from pellucid.serve.llamacpp.prompts import LlamaPrompts, prompts_of
from pellucid.serve.request_body import BodyRules, BodyType, ModelFields, RequestBody
from pellucid.serve.served_model import ServedModel

# Largest component if embd_normalize is 0, as in llama.cpp. It fits into int16.
LARGEST = 32_760.0


class LlamaEmbeddingFields(ModelFields, frozen=True, kw_only=True):
    """Fields of /embedding. ``content`` and ``input`` are names of one field."""

    content: LlamaPrompts | None = None
    input: LlamaPrompts | None = None
    embd_normalize: Annotated[int, Meta(ge=-1, le=1024)] = 2


EMBEDDING = BodyType(
    LlamaEmbeddingFields,
    BodyRules(ignored=frozenset({"user"}), only={"encoding_format": "float"}),
)


@dataclass(frozen=True)
class LlamaEmbedding:
    """A request for the vectors of ``prompts`` (token ids). ``norm`` is -1 (none), 0 (maximum) or p (p-norm)."""

    prompts: Sequence[list[int]]
    norm: int
    llm: ServedModel

    @classmethod
    def of(cls, body: RequestBody[LlamaEmbeddingFields], llm: ServedModel) -> LlamaEmbedding:
        """Read a body with ``content`` or ``input``.

        Raises:
            InvalidRequest: a field is wrong, or the model computes no vectors; the message names it.
        """
        check_task(llm, "embed", "tokens")
        fields = body.fields
        if fields.content is not None and fields.input is not None:
            raise InvalidRequest("content and input are names of one field: remove one of the two")
        name = "input" if fields.content is None else "content"
        if body.raw.get(name) is None:
            raise InvalidRequest("input is missing: the request must have it")
        prompts, _ = prompts_of(llm, name, body.raw[name])
        for at, one in enumerate(prompts):
            if not one:
                raise InvalidRequest(f"{name}[{at}] is empty: give at least one character")
            if len(one) > llm.context:
                raise ContextOverflow(
                    f"{name}[{at}] has {len(one):,} tokens; the limit is {llm.context:,}: shorten it"
                )
        return cls(prompts, fields.embd_normalize, llm)

    def answer(self) -> list[Any]:
        """Compute the vectors and return the response body.

        A model without pooling has a vector for each token; llama.cpp does not normalise them either.
        """
        if self.llm.spec.task == "tokens":
            rows = token_vectors(self.llm, self.prompts)
            return [{"index": at, "embedding": one.tolist()} for at, one in enumerate(rows)]
        vectors = _normalised(embed(self.llm, self.prompts), self.norm)
        return [{"index": at, "embedding": [vector]} for at, vector in enumerate(vectors.tolist())]


def _normalised(vectors: NDArray[np.float32], norm: int) -> NDArray[np.float64]:
    """Vectors (n, D), each divided by its norm."""
    values = vectors.astype(np.float64)
    if norm < 0:
        return values
    values /= np.maximum(np.abs(values).max(axis=1, keepdims=True), 1e-30)
    if norm == 0:
        values *= LARGEST
    else:
        # The division above makes the largest component 1. Without it, high powers of small components underflow to 0.
        values /= (np.abs(values) ** norm).sum(axis=1, keepdims=True) ** (1 / norm)
    return values


def llama_embedding(
    body: RequestBody[LlamaEmbeddingFields], llm: ServedModel, name: str, number: str
) -> list[Any]:
    """Response body of /embedding."""
    return LlamaEmbedding.of(body, llm).answer()
