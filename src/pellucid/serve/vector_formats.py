"""Vectors in the number formats of responses: floats, bytes, bits, base64.

Bytes and bits are of each vector alone, so a vector has the same bits in every batch.
"""

from __future__ import annotations

import base64
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pellucid.encoders.embedding import unit_length
from pellucid.encoders.model import EncoderModel
from pellucid.errors import InvalidRequest
from pellucid.model.outputs import UnitLength

VectorFormat: TypeAlias = Literal["float", "base64", "int8", "uint8", "binary", "ubinary"]


def formatted(vectors: NDArray[np.float32], form: VectorFormat) -> list[Any]:
    """The vectors (B, N) for JSON.

    - "float": numbers; "base64": base64 of the little-endian float32
    - "int8": x * 127 / max|x|, rounded; "uint8": the same plus 128
    - "ubinary": a bit for each component, 1 if it is above 0, eight in a byte with the first highest; "binary": the
      same minus 128. Source: ``quantize_embeddings`` in sentence-transformers
    """
    if form == "float":
        return list(vectors.tolist())
    if form == "base64":
        return [base64.b64encode(one.astype("<f4").tobytes()).decode() for one in vectors]
    if form in ("binary", "ubinary"):
        packed = np.packbits(vectors > 0, axis=1).astype(np.int64)
        return list((packed - 128 if form == "binary" else packed).tolist())
    values = vectors.astype(np.float64)
    largest = np.maximum(np.abs(values).max(axis=1, keepdims=True), 1e-30)
    steps = np.rint(values / largest * 127).astype(np.int64)
    return list((steps + 128 if form == "uint8" else steps).tolist())


def of_unit_length(
    model: EncoderModel, vectors: NDArray[np.float32], field: str, wanted: bool | None
) -> NDArray[np.float32]:
    """The vectors, scaled to length 1 if ``wanted``; None: as the model makes them.

    Raises:
        InvalidRequest: ``wanted`` is False, and the model itself scales its vectors.
    """
    layers = model.spec.output
    scaled = bool(layers) and isinstance(layers[-1], UnitLength)
    if wanted is False and scaled:
        raise InvalidRequest(f"{field}=False: the model itself scales its vectors to length 1: leave it out")
    return unit_length(vectors) if wanted and not scaled else vectors
