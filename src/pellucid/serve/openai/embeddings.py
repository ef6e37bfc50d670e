"""/v1/embeddings: sentence vectors of texts or token ids."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pellucid.encoders.embedding import embed, vector_width
from pellucid.engine.inputs import several
from pellucid.engine.request import Request
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.openai.common_fields import PLAIN_RULES
from pellucid.serve.request_body import BodyType, Count, ModelFields, Prompt, RequestBody, listed_texts
from pellucid.serve.served_model import ServedModel


class EmbeddingFields(ModelFields, frozen=True, kw_only=True):
    """Fields of an embedding request."""

    input: Prompt
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Count | None = None


EMBEDDING = BodyType(EmbeddingFields, PLAIN_RULES)


@dataclass(frozen=True)
class EmbeddingRequest:
    """A request for the vectors of ``encoded`` texts. Each vector has ``width`` components.

    With ``base64``, the response has each vector as base64. Otherwise it has lists of numbers.
    """

    encoded: Sequence[list[int]]
    base64: bool
    width: int
    llm: ServedModel
    groups: Sequence[Request] = ()  # nothing is generated

    @classmethod
    def of(cls, body: RequestBody[EmbeddingFields], llm: ServedModel) -> EmbeddingRequest:
        """Read a body.

        Raises:
            InvalidRequest: a field is wrong; the message names it.
            ContextOverflow: a text is too long for the model.
        """
        llm.inputs.check_task("embed")
        fields = body.fields
        encoded = [_encoded(one, llm) for one in _texts(fields.input)]
        return cls(encoded, fields.encoding_format == "base64", vector_width(llm, fields.dimensions), llm)

    def answer(self, name: str, number: str) -> dict[str, Any]:
        """Compute the vectors and return the response body of the model ``name``."""
        vectors = embed(self.llm, self.encoded, self.width)
        tokens = sum(map(len, self.encoded))
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


def _texts(given: Any) -> Sequence[Any]:
    """The texts of a request; each is a text or its token ids."""
    texts: Any = (several(given) or [given]) if given != [] else []
    if not texts or not all(isinstance(one, str) or (isinstance(one, list) and one) for one in texts):
        raise InvalidRequest(f"input={brief(given)}: must be a text, token ids, or a list of these")
    return listed_texts("input", texts)


def _encoded(text: str | list[Any], llm: ServedModel) -> list[int]:
    """Token ids of a text. A list of token ids stays unchanged."""
    return llm.inputs.sentences([text])[0] if isinstance(text, str) else llm.inputs.sentence_ids(text)
