"""Vectors of texts: sentence vectors, sparse vectors (SPLADE), and vectors of all tokens (ColBERT)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pellucid.encoders.model import EncoderModel
from pellucid.engine.encoder_input import EncoderInput
from pellucid.errors import InvalidRequest
from pellucid.model.config import MAX_DIMENSION
from pellucid.trace.edits import Edit
from pellucid.util.checks import whole


def embed(
    model: EncoderModel,
    encoded: Sequence[list[int]],
    dimensions: int | None = None,
    edits: Sequence[Edit] | None = None,
) -> NDArray[np.float32]:
    """The sentence vectors (B, N) of token ids, cut to ``dimensions`` components, by default as the file states.

    Raises:
        InvalidRequest: the model does not state that its vectors can be cut to this length.
    """
    width = vector_width(model, dimensions)
    vectors = np.concatenate(model.encode([EncoderInput(ids) for ids in encoded], edits))
    if width == model.spec.truncate_dim:  # as sentence-transformers, which does not scale them again
        return np.ascontiguousarray(vectors[:, :width])
    return shortened(vectors, width)


def vector_width(model: EncoderModel, dimensions: int | None) -> int:
    """Length of the vectors that are cut to ``dimensions`` components (None: the length that the file states).

    Raises:
        InvalidRequest: the model does not state that its vectors can be cut to this length.
    """
    spec, lengths = model.spec, model.spec.matryoshka
    if dimensions is None:
        return spec.truncate_dim or spec.output_width
    dimensions = whole("dimensions", dimensions, 1, MAX_DIMENSION)
    if dimensions == spec.output_width:
        return dimensions
    if lengths is None:
        raise InvalidRequest(
            f"dimensions={dimensions}: the vectors have {spec.output_width} components, and the model states no "
            "shorter length: leave it out"
        )
    if dimensions > spec.output_width or (lengths and dimensions not in lengths):
        known = ", ".join(map(str, lengths)) if lengths else f"1 to {spec.output_width}"
        raise InvalidRequest(f"dimensions={dimensions}: the model's vectors can be cut to {known}")
    return dimensions


def shortened(vectors: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """First ``width`` components of each vector, (B, width) float32. Cut vectors are scaled to length 1."""
    return vectors if width == vectors.shape[1] else unit_length(vectors[:, :width])


def unit_length(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each vector (B, N) scaled to length 1, float32."""
    values = vectors.astype(np.float64)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = (values / np.maximum(lengths, 1e-30)).astype(np.float32)
    return scaled


def sparse(
    model: EncoderModel, encoded: Sequence[list[int]], edits: Sequence[Edit] | None = None
) -> list[dict[int, float]]:
    """The sparse vector of each text: the weights above 0 by token id, in the order of the ids.

    If the file states a maximum number of weights, the largest weights are kept.
    """
    found, most = [], model.spec.max_active
    for rows in model.encode([EncoderInput(ids) for ids in encoded], edits):
        (ids,) = rows[0].nonzero()
        if 0 < most < len(ids):
            ids = np.sort(ids[np.argsort(-rows[0, ids], kind="stable")[:most]])
        found.append({int(token): float(rows[0, token]) for token in ids})
    return found


def token_vectors(
    model: EncoderModel, encoded: Sequence[list[int]], edits: Sequence[Edit] | None = None
) -> list[NDArray[np.float32]]:
    """The vectors of all tokens of each text, (T, N) float32."""
    return model.encode([EncoderInput(ids) for ids in encoded], edits)
