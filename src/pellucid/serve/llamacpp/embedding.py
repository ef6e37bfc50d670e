"""/embedding and /embeddings in llama.cpp's own form: for each prompt a list of vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import ContextOverflow, InvalidRequest
from pellucid.errors.messages import brief, shown
from pellucid.serve.body import Body, BodyForm
from pellucid.serve.llamacpp.prompts import prompts_of
from pellucid.serve.model import ServedModel
from pellucid.util.checks import whole

EMBEDDING_BODY = BodyForm(harmless=frozenset({"user"}), only={"encoding_format": "float"})
MOST_NORM = 1024
LARGEST = 32_760.0  # the largest component with embd_normalize 0, as in llama.cpp: it fits int16


@dataclass(frozen=True)
class LlamaEmbedding:
    """A request for the vectors of ``prompts`` (token ids). ``norm``: -1 none, 0 largest component, p the p-norm."""

    prompts: Sequence[list[int]]
    norm: int
    llm: ServedModel

    @classmethod
    def of(cls, body: Body, llm: ServedModel) -> LlamaEmbedding:
        """Read a body with ``content`` or ``input``.

        Raises:
            InvalidRequest: a field is wrong, or the model computes no sentence vectors; the message names it.
        """
        if not llm.spec.pooling:
            raise InvalidRequest(
                f"{shown(llm.spec.name)} makes text, not sentence vectors: name a sentence encoder, such as minilm"
            )
        name = "content" if body.holds("content") else "input"
        prompts, _ = prompts_of(llm, name, body.required(name))
        norm = whole("embd_normalize", body.take("embd_normalize", 2), -1, MOST_NORM)
        if left := body.rest():
            raise InvalidRequest(
                f"unknown field {brief(min(left))}: an embedding has content and embd_normalize"
            )
        for at, one in enumerate(prompts):
            if not one:
                raise InvalidRequest(f"{name}[{at}] is empty: give at least one character")
            if len(one) > llm.context:
                raise ContextOverflow(
                    f"{name}[{at}] has {len(one):,} tokens; the limit is {llm.context:,}: shorten it"
                )
        return cls(prompts, norm, llm)

    def answer(self) -> list[Any]:
        """Compute the vectors and return the response body."""
        vectors = _normalised(self.llm.embed_tokens(self.prompts), self.norm)
        return [{"index": at, "embedding": [vector]} for at, vector in enumerate(vectors.tolist())]


def _normalised(vectors: NDArray[np.float32], norm: int) -> NDArray[np.float64]:
    """Vectors (n, D), each divided by its norm."""
    values = vectors.astype(np.float64)
    if norm < 0:
        return values
    values /= np.maximum(np.abs(values).max(axis=1, keepdims=True), 1e-30)
    if norm == 0:
        values *= LARGEST
    else:  # the largest component is 1 here, because high powers of small numbers would be zero
        values /= (np.abs(values) ** norm).sum(axis=1, keepdims=True) ** (1 / norm)
    return values
