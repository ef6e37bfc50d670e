"""The vector-Jacobian products of several residual streams, and of sparse gates (``kernels/ops/streams.py``).

``mixed``, ``changed`` and ``rescaled`` have constant coefficients. They take the gradients of N copies of the T
recorded rows, (N · T, width).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.ops.streams import MIN_MEAN_SQUARE
from pellucid.plan.plan import At, Operation, Vector
from pellucid.trace.backward.product_values import Rows, Values, number_of, size_of


def mixed(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """The prediction of all streams, with constant coefficients."""
    yield "streams", _through_prediction(op, values, _of_prediction(op, values))


def predict(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """The prediction of all streams: each stream, plus a sum of all streams by the coefficients. N is 1."""
    g, streams = _of_prediction(op, values), _parts(op, values.values["streams"])
    yield "streams", _through_prediction(op, values, g)
    yield "coefs", np.matmul(g, streams.swapaxes(-1, -2)).reshape(streams.shape[1], -1)


def changed(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """The correction of all streams by the change that a block made, with constant coefficients."""
    yield from _through_correction(op, values, _of_correction(op, values))


def correct(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """The correction of all streams: the change that the block made, times 1 + a coefficient of each stream. N is 1."""
    g = _of_correction(op, values)
    predicted = _parts(op, values.values["predicted"])[0, :, size_of(op, "active")]
    change = values.values["x"][:, : predicted.shape[1]] - predicted
    yield "coefs", np.einsum("tsd,td->ts", g[0], change)
    yield from _through_correction(op, values, g)


def spread(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """x, added to all streams but the first."""
    yield "streams", gradient
    parts = gradient[:, : size_of(op, "count") * size_of(op, "width")]
    yield "x", parts.reshape(len(gradient), size_of(op, "count"), -1)[:, 1:].sum(1)


def rescaled(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """x, times a constant factor of each row."""
    x, _, factor = _match(op, values)
    g = gradient.reshape(-1, *values.values["x"].shape)[:, :, : x.shape[1]]
    yield "x", (g * factor.astype(np.float32)).reshape(-1, x.shape[1])


def match(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """x · RMS(like) / RMS(x)."""
    x, like, factor = _match(op, values)
    g = gradient[:, : x.shape[1]].astype(np.float64)
    along = (g * x).sum(-1, keepdims=True)
    squares = (x * x).sum(-1, keepdims=True)
    floor = x.shape[1] * MIN_MEAN_SQUARE
    of_scale = np.where(squares > floor, along / np.maximum(squares, floor), 0)
    yield "x", (factor * (g - of_scale * x)).astype(np.float32)
    of_like = (like * like).sum(-1, keepdims=True)
    found = np.divide(factor * along, of_like, out=np.zeros_like(along), where=of_like > 0)
    yield "like", (found * like).astype(np.float32)


def sparsify(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """The values above a threshold, minus the threshold."""
    count = size_of(op, "count")
    x, out = values.values["x"][:, :count], values.values["out.x"][:, :count]
    yield "x", through_threshold(gradient[:, :count], x, out > 0, number_of(op, "deviations"))


def through_threshold(gradient: Rows, x: Rows, kept: NDArray[np.bool_], deviations: float) -> Rows:
    """The gradient (..., F) of x, for the gradient of x - threshold at the values ``kept``.

    The threshold is the mean plus ``deviations`` standard deviations of a row. Threshold and values grow together, so
    the sum of inputs times gradients is the output.
    """
    g = gradient * kept
    total = g.sum(-1, keepdims=True, dtype=np.float64)
    centred = x - x.mean(-1, keepdims=True, dtype=np.float64)
    deviation = np.sqrt((centred * centred).mean(-1, keepdims=True))
    unit = np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 0)
    return np.asarray(g - total / x.shape[-1] * (1 + deviations * unit), np.float32)


def _through_prediction(op: Operation, values: Values, g: Rows) -> Rows:
    """The gradient of the streams, for the gradient ``g`` (N, T, S, D) of their prediction."""
    coefs = _coefficients(op, values, size_of(op, "count") ** 2)
    coefs = coefs.reshape(len(coefs), g.shape[2], g.shape[2])
    return _rows(g + np.matmul(coefs.swapaxes(1, 2), g))


def _of_prediction(op: Operation, values: Values) -> Rows:
    """The gradient (N, T, S, D) of the predicted streams, with the gradient of the active stream's copy."""
    found = _streams(op, values, "predicted")
    x = op.fields["x"]
    assert isinstance(x, At)
    if (own := values.gradients.get(x.buffer)) is not None:
        found[:, :, size_of(op, "active")] += own.reshape(*found.shape[:2], -1)
    return found


def _through_correction(op: Operation, values: Values, g: Rows) -> Iterator[tuple[str, Rows]]:
    """The gradients of x and of the prediction, for the gradient ``g`` of the correction, which is changed."""
    factors = 1 + _coefficients(op, values, size_of(op, "count"))
    of_change = np.einsum("ts,ntsd->ntd", factors, g)
    yield "x", of_change.reshape(-1, g.shape[3])
    g[:, :, size_of(op, "active")] -= of_change
    yield "predicted", _rows(g)


def _of_correction(op: Operation, values: Values) -> Rows:
    """The gradient (N, T, S, D) of the corrected streams, with the gradient of the active stream's scaled copy."""
    found = _streams(op, values, "streams")
    out, scale = op.fields["out"], op.fields["scale"]
    assert isinstance(out, At)
    if (own := values.gradients.get(out.buffer)) is not None:
        own = own.reshape(*found.shape[:2], -1)
        if isinstance(scale, Vector):
            weight = np.zeros(own.shape[-1], np.float32)
            given = values.weights.values(scale.slot).reshape(-1)
            weight[: len(given)] = given
            own = own * weight
        found[:, :, size_of(op, "active")] += own
    return found


def _streams(op: Operation, values: Values, field: str) -> Rows:
    """A copy of the gradient (N, T, S, D) of the streams that an operation writes; 0 without a gradient."""
    at = op.fields[field]
    assert isinstance(at, At)
    own = values.gradients.get(at.buffer)
    rows = len(values.values["coefs"])
    if own is None:
        copies = len(next(iter(values.gradients.values()))) // rows
        return np.zeros((copies, rows, size_of(op, "count"), size_of(op, "width")), np.float32)
    return np.array(_parts(op, own, rows))


def _parts(op: Operation, streams: Rows, rows: int = 0) -> Rows:
    """Streams (N · rows, S D) as (N, rows, S, D)."""
    shape = rows or len(streams), size_of(op, "count"), size_of(op, "width")
    return streams[:, : shape[1] * shape[2]].reshape(-1, *shape)


def _rows(streams: Rows) -> Rows:
    N, T, S, D = streams.shape
    return streams.reshape(N * T, S * D)


def _coefficients(op: Operation, values: Values, count: int) -> Rows:
    return values.values["coefs"][:, :count]


def _match(
    op: Operation, values: Values
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """x and like (T, D), and the factors (T, 1) of the rows of x."""
    x, like = (values.values[name][:, : size_of(op, "count")].astype(np.float64) for name in ("x", "like"))
    mean_square = np.maximum((x * x).mean(-1, keepdims=True), MIN_MEAN_SQUARE)
    return x, like, np.sqrt((like * like).mean(-1, keepdims=True) / mean_square)
