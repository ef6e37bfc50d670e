"""The vector-Jacobian products of mixtures, recurrent layers and several residual streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.ops.streams import MIN_MEAN_SQUARE
from pellucid.plan.plan import At, Operation, Vector, Weights
from pellucid.trace.backward.reverse_walk import Rows, Values, number_of, size_of, vector_of
from pellucid.util.probabilities import exponentials

# The vector-Jacobian products of mixtures of experts: the router's weights, the experts, and the sum of results.


def choices(rows: Rows, chosen: int) -> NDArray[np.int32]:
    """The numbers of the chosen experts (T, C), which are recorded as the bits of float32."""
    return np.ascontiguousarray(rows).view(np.int32)[:, :chosen]


def opened_gate(rows: Rows) -> NDArray[np.float64]:
    return 1 / (1 + exponentials(-rows[:, :1].astype(np.float64)))


def route(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """The weights of the chosen experts: softmax or sigmoid of the scores, normalised, times a factor."""
    experts_, chosen = size_of(op, "experts"), size_of(op, "chosen")
    ids = choices(values.values["out.ids"], chosen).astype(np.int64)
    x = values.values["scores"][:, :experts_].astype(np.float64)
    softmax = op.kernel["kind"] == "softmax"
    p = exponentials(x - x.max(-1, keepdims=True)) if softmax else 1 / (1 + exponentials(-x))
    p = p / p.sum(-1, keepdims=True) if softmax else p
    g = gradient[:, :chosen].astype(np.float64) * number_of(op, "factor")
    if isinstance(op.fields["factors"], Vector):
        g = g * vector_of(values.weights, op.fields["factors"], experts_)[ids]
    if size_of(op, "normalize"):
        own = np.take_along_axis(p, ids, -1)
        total = own.sum(-1, keepdims=True)
        g = (g - (g * own).sum(-1, keepdims=True) / total) / total
    of_p = np.zeros_like(p)
    np.put_along_axis(of_p, ids, g, -1)
    of_x = p * (of_p - (of_p * p).sum(-1, keepdims=True)) if softmax else of_p * p * (1 - p)
    yield "scores", of_x.astype(np.float32)


def experts(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """The product of each choice's row with the matrix of its expert. ``gathered``: x has one row for each token."""
    weights, columns, count = op.fields["weights"], size_of(op, "columns"), size_of(op, "experts")
    assert isinstance(weights, Weights)
    view, width = op.views[0], size_of(op, "out_stride") // 4
    assert view is not None
    chosen = view.parts
    ids, matrices = choices(values.values["ids"], chosen), values.weights.values(weights.slot)
    matrices = matrices.reshape(count, -1, matrices.shape[-1])
    rows = gradient[:, : chosen * width].reshape(len(gradient), chosen, width)[:, :, : matrices.shape[1]]
    of_x = np.zeros((len(gradient), chosen, columns), np.float32)
    for expert in np.unique(ids):
        own = ids == expert
        of_x[own, : matrices.shape[2]] = rows[own] @ matrices[expert]
    yield "x", of_x.sum(1) if op.kernel["gathered"] else of_x.reshape(len(gradient), -1)


def weigh(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """Rows of choices, times the weights of the choices."""
    chosen = size_of(op, "chosen")
    x = values.values["x"]
    gradient = gradient[:, : x.shape[1]]
    parts = [rows.reshape(len(rows), chosen, -1) for rows in (gradient, x)]
    weights = values.values["weights"][:, :chosen]
    yield "x", (parts[0] * weights[:, :, None]).reshape(len(gradient), -1)
    yield "weights", (parts[0] * parts[1]).sum(-1)


def combine(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """The weighted sum of the results of the choices, plus the shared expert's result times its gate."""
    chosen, found, gradient = size_of(op, "chosen"), values.values, gradient[:, : size_of(op, "width")]
    results = found["results"].reshape(len(gradient), chosen, -1)
    own = np.zeros_like(results)
    own[:, :, : gradient.shape[1]] = gradient[:, None]
    if "weights" in found:
        yield "weights", (own * results).sum(-1)
        own = own * found["weights"][:, :chosen, None]
    yield "results", own.reshape(len(gradient), -1)
    if "shared" not in found:
        return
    if "gate" not in found:
        yield "shared", gradient
        return
    gate = opened_gate(found["gate"])
    yield "shared", (gradient * gate).astype(np.float32)
    of_gate = (gradient * found["shared"][:, : gradient.shape[1]]).sum(-1, keepdims=True) * gate * (1 - gate)
    yield "gate", of_gate.astype(np.float32)


# The vector-Jacobian products of recurrent layers: the convolution, the decays of states, and the scan over tokens.

CHUNK = 16
"""Number of tokens between kept states of a scan. The states between are computed again."""
Wide = NDArray[np.float64]


class Convolution:
    """The linear part of a convolution: bias + Σ weight[j] · x[t - (J - 1) + j + ahead], for arrays (…, T, C)."""

    def __init__(self, op: Operation, values: Values) -> None:
        self.width, self._taps, self._ahead = size_of(op, "width"), size_of(op, "taps"), op.kernel["ahead"]
        slot, bias = op.fields["weight"], op.fields["bias"]
        assert isinstance(slot, Vector)
        own = values.weights.values(slot.slot).astype(np.float64).reshape(-1, self._taps).T
        self._weight = np.zeros((self._taps, self.width))
        self._weight[:, : own.shape[1]] = own
        added = vector_of(values.weights, bias, self.width) if isinstance(bias, Vector) else np.zeros(0)
        self._bias = _padded(added, self.width)

    def __call__(self, x: NDArray[Any]) -> Wide:
        """The values before f."""
        found = np.zeros(x.shape) + self._bias
        for weight, to, source in self._shifts(x.shape[-2]):
            found[..., to, :] += weight * x[..., source, :]
        return found

    def back(self, gradient: NDArray[Any]) -> Wide:
        found = np.zeros(gradient.shape)
        for weight, to, source in self._shifts(gradient.shape[-2]):
            found[..., source, :] += weight * gradient[..., to, :]
        return found

    def _shifts(self, count: int) -> Iterator[tuple[Wide, slice, slice]]:
        """The weights of each tap, with the tokens that read through it and the tokens that they read."""
        for tap, weight in enumerate(self._weight):
            shift = tap - (self._taps - 1) + self._ahead
            if abs(shift) < count:  # otherwise no token reads through this tap
                yield weight, *_shifted(count, shift)


def convolve(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """f(z) of a convolution z."""
    own = Convolution(op, values)
    found = np.zeros((len(gradient), own.width), np.float32)
    for rows in values.sequences:
        g = gradient[rows, : own.width].astype(np.float64)
        if op.kernel["silu"]:
            z = own(values.values["x"][rows, : own.width])
            s = 1 / (1 + np.exp(-z))
            g = g * s * (1 + z * (1 - s))
        found[rows] = own.back(g)
    yield "x", found


def _shifted(count: int, shift: int) -> tuple[slice, slice]:
    """The tokens that read the token ``shift`` later, and the tokens that they read."""
    return slice(max(0, -shift), count - max(0, shift)), slice(max(0, shift), count - max(0, -shift))


def decay(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """steps = clamp(softplus(x + bias), low, high), decays = e^(rate · steps)."""
    width, x = size_of(op, "width"), values.values["x"].astype(np.float64)
    z = x[:, :width] + _padded(vector_of(values.weights, op.fields["bias"], width), width)
    rate = _padded(vector_of(values.weights, op.fields["rate"], width), width)
    smooth = np.logaddexp(0.0, z)
    steps = np.clip(smooth, number_of(op, "low"), number_of(op, "high"))
    total = np.zeros_like(z)
    for name, factor in (("x", 1.0), ("decays", rate * np.exp(rate * steps))):
        at = op.fields[name]
        assert isinstance(at, At)
        if (own := values.gradients.get(at.buffer)) is not None:
            total += own[:, :width] * factor
    inside = (smooth >= number_of(op, "low")) & (smooth <= number_of(op, "high"))
    found = np.zeros(values.values["x"].shape, np.float32)
    found[:, :width] = total * inside / (1 + np.exp(-z))
    yield "x", found


def _padded(vector: Wide, width: int) -> Wide:
    found = np.zeros(width)
    found[: len(vector)] = vector
    return found


def scan(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """The state of each head: S = a S + k ⊗ u, out = Sᵀ q + skip v (``kernels/ops/recurrent.py``)."""
    H, G, K, V = (size_of(op, name) for name in ("heads", "groups", "key_dim", "value_dim"))
    spread = size_of(op, "group_stride") // 4
    group = np.arange(H) // size_of(op, "neighbours") % G
    skip = op.fields["skip"]
    factor = vector_of(values.weights, skip, H) if isinstance(skip, Vector) else np.zeros(H)
    found = {name: np.zeros_like(values.values[name]) for name in ("q", "k", "v", "decays", "factors")}
    for rows in values.sequences:
        g = gradient[rows, : H * V].reshape(-1, H, V).astype(np.float64)
        of = _scanned_back(*scanned_values(op, values, rows), g, delta=op.kernel["delta"])
        of["v"] += factor[:, None] * g
        for name in "qk":
            by_group = found[name][rows, : G * spread].reshape(-1, G, spread)
            for head in range(H):
                by_group[:, group[head], :K] += of[name][:, head]
            found[name][rows, : G * spread] = by_group.reshape(len(by_group), -1)
        found["v"][rows, : H * V] = of["v"].reshape(-1, H * V)
        found["decays"][rows, :H], found["factors"][rows, :H] = of["a"], of["b"]
    yield from found.items()


def scanned_values(op: Operation, values: Values, rows: slice) -> tuple[Wide, Wide, Wide, Wide, Wide]:
    """The inputs of a scan in some rows: q, k (T, H, K), v (T, H, V), decays and factors (T, H)."""
    H, G, K, V = (size_of(op, name) for name in ("heads", "groups", "key_dim", "value_dim"))
    spread, group = size_of(op, "group_stride") // 4, np.arange(H) // size_of(op, "neighbours") % G
    found = {name: values.values[name][rows].astype(np.float64) for name in ("q", "k", "v", "decays", "factors")}
    q, k = (found[name][:, : G * spread].reshape(-1, G, spread)[:, group, :K] for name in "qk")
    v = found["v"][:, : H * V].reshape(-1, H, V)
    return q, k, v, found["decays"][:, :H], found["factors"][:, :H]


def _scanned_back(
    q: Wide, k: Wide, v: Wide, a: Wide, b: Wide, g: Wide, *, delta: bool
) -> dict[str, NDArray[np.float64]]:
    """The gradients of the inputs (T, H, …) of a scan, for the gradients g (T, H, V) of its output without the skip."""
    T, H, K = q.shape
    V = v.shape[2]
    of = {name: np.zeros(one.shape) for name, one in {"q": q, "k": k, "v": v, "a": a, "b": b}.items()}

    def step(state: Wide, t: int) -> tuple[Wide, Wide, Wide]:
        """The decayed state, the new values, and the state after token t."""
        decayed = a[t, :, None, None] * state
        new = v[t] - np.einsum("hkv,hk->hv", decayed, k[t]) if delta else v[t]
        return decayed, new, decayed + k[t][:, :, None] * (b[t][:, None] * new)[:, None, :]

    starts, state = [np.zeros((H, K, V))], np.zeros((H, K, V))
    for t in range(T - 1):
        state = step(state, t)[2]
        if (t + 1) % CHUNK == 0:
            starts.append(state)
    of_state = np.zeros((H, K, V))
    for chunk in reversed(range(len(starts))):
        states = [starts[chunk]]
        tokens = range(chunk * CHUNK, min((chunk + 1) * CHUNK, T))
        parts = []
        for t in tokens:
            parts.append(step(states[-1], t))
            states.append(parts[-1][2])
        for t in reversed(tokens):
            decayed, new, after = parts[t - tokens.start]
            before = states[t - tokens.start]
            of_state += q[t][:, :, None] * g[t][:, None, :]
            of["q"][t] = np.einsum("hkv,hv->hk", after, g[t])
            of_u = np.einsum("hkv,hk->hv", of_state, k[t])
            of["k"][t] = np.einsum("hkv,hv->hk", of_state, b[t][:, None] * new)
            of["b"][t] = (of_u * new).sum(-1)
            of_new = b[t][:, None] * of_u
            of["v"][t] = of_new
            if delta:
                of["k"][t] -= np.einsum("hkv,hv->hk", decayed, of_new)
                of_state = of_state - k[t][:, :, None] * of_new[:, None, :]
            of["a"][t] = (of_state * before).sum((1, 2))
            of_state = a[t, :, None, None] * of_state
    return of


# The vector-Jacobian products of several residual streams, and of sparse gates (``kernels/ops/streams.py``).
#
# ``mixed``, ``changed`` and ``rescaled`` have constant coefficients. They take the gradients of N copies of the T
# recorded rows, (N · T, width).


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
    shape = rows or len(streams), size_of(op, "count"), size_of(op, "width")
    return streams[:, : shape[1] * shape[2]].reshape(-1, *shape)


def _rows(streams: Rows) -> Rows:
    N, T, S, D = streams.shape
    return streams.reshape(N * T, S * D)


def _coefficients(op: Operation, values: Values, count: int) -> Rows:
    return values.values["coefs"][:, :count]


def _match(op: Operation, values: Values) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """x and like (T, D), and the factors (T, 1) of the rows of x."""
    x, like = (values.values[name][:, : size_of(op, "count")].astype(np.float64) for name in ("x", "like"))
    mean_square = np.maximum((x * x).mean(-1, keepdims=True), MIN_MEAN_SQUARE)
    return x, like, np.sqrt((like * like).mean(-1, keepdims=True) / mean_square)
