"""Comparisons: two runs point by point, and words and vectors in the space of the embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, brief
from pellucid.trace.export import json_fields
from pellucid.trace.traced_model import WEIGHT_ROWS, ModelWeights, OpenedModel, TracedModel, read, residual_points
from pellucid.util.checks import is_whole, items, whole

# The difference of two runs, point by point: two prompts of equal length, or two models of the same shape.


@dataclass(frozen=True)
class PointDifference:
    """The difference of a point's values a and b in two runs, over all positions.

    ``relative`` is |a - b| / |b|, and ``cosine`` is the cosine between a and b. ``by_position`` (T,) is the relative
    difference at each position. ``position`` has the largest relative difference.
    """

    name: str
    relative: float
    cosine: float
    position: int
    by_position: NDArray[np.float64] = field(repr=False)


@dataclass(frozen=True, repr=False)
class RunDifference:
    """The differences of points, in the order of the pipeline."""

    points: Sequence[PointDifference]
    pieces: list[str]

    def __repr__(self) -> str:
        first = self.begins()
        begins = f"begins at {first.name}" if first else "no difference"
        return f"RunDifference({len(self.points)} points, {begins}, ends at {self.points[-1].relative:.2%})"

    def begins(self, least: float = 0.0) -> PointDifference | None:
        """The first point whose relative difference is above ``least``."""
        return next((point for point in self.points if point.relative > least), None)

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dictionary for JSON."""
        return json_fields(self, "pieces", "points")


def difference(
    model: TracedModel, a: Any, b: Any, *, other: TracedModel | None = None, points: Sequence[str] | None = None
) -> RunDifference:
    """Compare run ``a`` of this model with run ``b`` of this model, or of an ``other`` model of the same shape.

    ``a`` and ``b`` are prompts, or sequences of traces. By default ``points`` is the residual stream after each block.

    Raises:
        InvalidRequest: the runs differ in length, or the models differ in shape.
    """
    names = list(points) if points is not None else residual_points(model)
    second = other or model
    if second.spec.embedding.width != model.spec.embedding.width or len(second.spec.blocks) != len(model.spec.blocks):
        raise InvalidRequest("the two models have different shapes: their values cannot be compared")
    run_a = read(model, a, names)
    run_b = read(second, b, names)
    if len(run_a) != len(run_b):
        raise InvalidRequest(f"the runs have {len(run_a)} and {len(run_b)} tokens: compare runs of equal length")
    return RunDifference([_compared(name, run_a[name], run_b[name]) for name in names], run_a.pieces)


def _compared(name: str, a: NDArray[Any], b: NDArray[Any]) -> PointDifference:
    if a.shape != b.shape:
        raise InvalidRequest(f"point={name!r}: shapes {a.shape} and {b.shape} cannot be compared")
    x, y = (values.astype(np.float64).reshape(len(values), -1) for values in (a, b))
    off, size = np.linalg.norm(x - y, axis=1), np.linalg.norm(y, axis=1)
    each = off / np.maximum(size, 1e-30)
    cosine = float((x * y).sum() / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-30))
    relative = float(np.linalg.norm(x - y) / max(float(np.linalg.norm(y)), 1e-30))
    return PointDifference(name, relative, cosine, int(each.argmax()), each)


# Similarity in the embedding space: the nearest tokens of a vector, the similarities of words, and a map of words.

MOST = 10_000
MOST_WORDS = 2000


def neighbours(model: OpenedModel, of: Any, n: int = 10, *, head: bool = False) -> list[tuple[str, int, float]]:
    """The ``n`` tokens whose embeddings are nearest to a word, a token id, or a vector (D,): (text, id, cosine).

    With ``head``, the rows of the output projection are searched instead of the embeddings.

    Raises:
        InvalidRequest: the vector has another width, the text is empty, or ``n`` is out of range.
    """
    n = whole("n", n, 1, min(MOST, model.spec.embedding.vocabulary))
    spec, weights = model.spec, ModelWeights(model.checkpoint, model.model)
    slot = "project.weight" if head and spec.head and not spec.head.tied else "embed.weight"
    vector = vector_of(model, of, slot)
    length = float(np.linalg.norm(vector))
    if not length:
        raise InvalidRequest(f"vector={brief(of)}: the vector is zero, so it has no direction")
    parts, count = list[NDArray[np.float64]](), spec.embedding.vocabulary
    for start in range(0, count, WEIGHT_ROWS):
        rows = weights.rows(slot, start, min(start + WEIGHT_ROWS, count)).astype(np.float64)
        parts.append(rows @ vector / np.maximum(np.linalg.norm(rows, axis=1) * length, 1e-30))
    cosines = np.concatenate(parts)
    cosines = cosines[: min(len(cosines), model.tokenizer.vocab_size)]
    order = np.argsort(-cosines, kind="stable")[:n]
    return [(model.tokenizer.piece(int(i)), int(i), float(cosines[i])) for i in order]


def vector_of(model: OpenedModel, of: Any, slot: str = "embed.weight") -> NDArray[np.float64]:
    """The vector of a word (the mean of its tokens' rows) or of a token id, (D,) float64.

    A vector is returned unchanged.

    Raises:
        InvalidRequest: ``of`` is another value, has no tokens, or is a vector of another width.
    """
    spec, weights = model.spec, ModelWeights(model.checkpoint, model.model)
    if isinstance(of, str):
        ids = model.tokenizer.encode(of, add_special=False)
        if not ids:
            raise InvalidRequest(f"word={brief(of)}: it has no tokens")
        return np.asarray(np.mean([weights.rows(slot, token, token + 1)[0] for token in ids], axis=0), np.float64)
    if is_whole(of):
        token = whole("token", of, 0, spec.embedding.vocabulary - 1)
        return np.asarray(weights.rows(slot, token, token + 1)[0], np.float64)
    try:
        vector = np.asarray(of)
        if vector.dtype.kind not in "fiu":
            raise ValueError
    except ValueError:  # rows of different lengths, or no numbers
        raise InvalidRequest(f"of={brief(of)}: must be a word, a token id or a vector") from None
    vector = vector.astype(np.float64).reshape(-1)
    width = spec.embedding.narrow or spec.embedding.width
    if len(vector) != width:
        raise InvalidRequest(f"vector of {len(vector):,} values; the model's embeddings have {width:,}")
    return vector


def similarity(model: OpenedModel, words: Iterable[Any]) -> NDArray[np.float64]:
    """The cosine similarities between the embeddings of words, (n, n)."""
    rows = _normalised(_vectors(model, words))
    return np.asarray(rows @ rows.T, np.float64)


def word_map(model: OpenedModel, words: Iterable[Any]) -> NDArray[np.float64]:
    """Coordinates of words in the plane, (n, 2): the first two principal components of their normalised embeddings.

    The sign of a component is arbitrary. It is chosen so that the coordinate with the largest absolute value is
    positive.
    """
    rows = _normalised(_vectors(model, words))
    centred = rows - rows.mean(0)
    components, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    coordinates = np.zeros((len(rows), 2))
    count = min(2, len(sizes))
    coordinates[:, :count] = components[:, :count] * sizes[:count]
    for column in range(count):
        if coordinates[np.abs(coordinates[:, column]).argmax(), column] < 0:
            coordinates[:, column] *= -1
    return coordinates


def around(model: OpenedModel, words: Sequence[str | int], n: int) -> dict[str, Any]:
    """Data for JSON: the ``n`` nearest tokens of each word or token id.

    For several words, the data also has the cosine similarities between the words, and the map of the words.
    """
    nearest = {
        word: [{"piece": text, "token": token, "cosine": cosine} for text, token, cosine in neighbours(model, word, n)]
        for word in (words if n else ())
    }
    several = len(words) > 1
    return {
        "neighbours": nearest,
        "similarity": similarity(model, words).tolist() if several else [],
        "map": word_map(model, words).tolist() if several else [],
    }


def _vectors(model: OpenedModel, words: Iterable[Any]) -> NDArray[np.float64]:
    given = list(islice(items("words", words, "words"), MOST_WORDS + 1))
    if not 1 <= len(given) <= MOST_WORDS:
        raise InvalidRequest(f"words={brief(words)}: must be a list of 1 to {MOST_WORDS:,} words")
    return np.stack([vector_of(model, word) for word in given])


def _normalised(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30), np.float64)
