"""/v1/embeddings: sentence vectors of texts or token ids."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.engine.inputs import several
from pellucid.engine.request import Request
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.body import MOST_TEXTS, Body
from pellucid.serve.model import ServedModel


@dataclass(frozen=True)
class EmbeddingRequest:
    """A request for the vectors of ``encoded`` texts, with ``width`` components, as ``base64`` or as numbers."""

    encoded: Sequence[list[int]]
    base64: bool
    width: int
    llm: ServedModel
    groups: Sequence[Request] = ()  # nothing is generated

    @classmethod
    def of(cls, body: Body, llm: ServedModel) -> EmbeddingRequest:
        """Read a body.

        Raises:
            InvalidRequest: a field is wrong; the message names it.
            ContextOverflow: a text is too long for the model.
        """
        form = body.take("encoding_format", "float")
        if form not in ("float", "base64"):
            raise InvalidRequest(f"encoding_format={brief(form)}: must be float or base64")
        encoded = [_encoded(one, llm) for one in _texts(body.required("input"))]
        return cls(encoded, form == "base64", vector_width(body, llm), llm)

    def answer(self, name: str, number: str) -> dict[str, Any]:
        """Compute the vectors and return the response body of the model ``name``."""
        vectors = shortened(self.llm.embed_tokens(self.encoded), self.width)
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


def vector_width(body: Body, llm: ServedModel) -> int:
    """Length of the vectors, from the field ``dimensions``.

    Raises:
        InvalidRequest: the model does not state that its vectors can be cut to this length.
    """
    wanted, pooling = body.count("dimensions", 1, 1 << 24), llm.spec.pooling
    if wanted in (None, llm.width) or pooling is None:
        return llm.width
    lengths = pooling.matryoshka
    if lengths is None:
        raise InvalidRequest(
            f"dimensions={wanted}: the vectors have {llm.width}, and the model states none that they can be cut to; "
            "leave it out"
        )
    if wanted > llm.width or (lengths and wanted not in lengths):
        known = ", ".join(map(str, lengths)) if lengths else f"1 to {llm.width}"
        raise InvalidRequest(f"dimensions={wanted}: the model's vectors can be cut to {known}")
    return wanted


def shortened(vectors: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """First ``width`` components of each vector, (N, width) float32. Cut vectors are scaled to length 1."""
    if width == vectors.shape[1]:
        return vectors
    cut = vectors[:, :width].astype(np.float64)
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = (cut / np.maximum(lengths, 1e-30)).astype(np.float32)
    return scaled


def _texts(given: Any) -> Sequence[Any]:
    """The texts of a request; each is a text or its token ids."""
    found = (several(given) or [given]) if isinstance(given, (str, list)) and given != [] else None
    if found is None or not all(isinstance(one, str) or (isinstance(one, list) and one) for one in found):
        raise InvalidRequest(f"input={brief(given)}: must be a text, token ids, or a list of these")
    if len(found) > MOST_TEXTS:
        raise InvalidRequest(f"input has {len(found):,} texts; the limit is {MOST_TEXTS:,}")
    return found


def _encoded(text: str | list[Any], llm: ServedModel) -> list[int]:
    """Token ids of a text. A list of token ids stays unchanged."""
    return llm.inputs.sentences([text])[0] if isinstance(text, str) else llm.inputs.sentence_ids(text)
