"""/v1/embeddings: texts in, sentence vectors out."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pellucid.engine.text_group import TextGroup
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.body import Body
from pellucid.serve.model import ServedModel


@dataclass(frozen=True)
class EmbeddingRequest:
    """What a body asks for: the vectors of ``texts``, as numbers or as the ``base64`` form of their bytes."""

    texts: list[str]
    base64: bool
    llm: ServedModel
    groups: Sequence[TextGroup] = ()  # no text is made

    @classmethod
    def of(cls, body: Body, llm: ServedModel) -> EmbeddingRequest:
        """Read a body.

        Raises:
            InvalidRequest: a field is wrong; the message names it.
        """
        texts = body.texts("input")
        if not texts:
            raise InvalidRequest("input=[]: must have at least one text")
        form = body.take("encoding_format", "float")
        if form not in ("float", "base64"):
            raise InvalidRequest(f"encoding_format={brief(form)}: must be float or base64")
        if (width := body.count("dimensions", 1, 1 << 24)) not in (None, llm.width):
            raise InvalidRequest(f"dimensions={width}: the model's vectors have {llm.width}")
        if left := body.rest():
            raise InvalidRequest(
                f"unknown field {brief(min(left))}: an embedding has input and encoding_format"
            )
        return cls(texts, form == "base64", llm)

    def answer(self, name: str, number: str) -> dict[str, Any]:
        """Compute the vectors, and return the body of an answer of the model ``name``."""
        llm = self.llm
        encoded = llm.inputs.sentences(self.texts)
        vectors, tokens = llm.embed_tokens(encoded), sum(map(len, encoded))
        return {
            "object": "list",
            "model": name,
            "data": [
                {
                    "object": "embedding",
                    "index": at,
                    "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
                    if self.base64
                    else vector.tolist(),
                }
                for at, vector in enumerate(vectors)
            ],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
