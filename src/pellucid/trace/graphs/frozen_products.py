"""The products of the local replacement model, which keeps the attention patterns and norm scales of one run.

Between feed-forwards this model is linear (Ameisen et al. 2025, "Circuit Tracing"). ``frozen_product_of`` gives the
product of an operation for several gradients at once: their rows (N · T, width) follow each other, and the values of
the run have T rows.

Frozen are attention patterns, the scale of each norm, gates of attention, the queries, keys and decays of recurrent
layers, and the coefficients of several residual streams. Soft-caps of logits are left out. In f(x) · up the ratio
f(x) / x is frozen, and each of the two factors carries half of the product (the half rule: Arras et al. 2019,
arXiv:1909.12114; Jafari et al. 2025, "RelP", arXiv:2508.21258). The sum of inputs times gradients then equals the
output, up to biases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.kernels.ops.elementwise import activation_reference, derivative
from pellucid.plan.plan import At, Operation, Vector
from pellucid.plan.points import AttentionMask
from pellucid.trace.backward import products
from pellucid.trace.backward.layer_products import Convolution, changed, mixed, rescaled, scanned_values
from pellucid.trace.backward.products import SCANNED
from pellucid.trace.backward.reverse_walk import KernelProduct, Rows, Values, number_of, size_of, vector_of

# The attention patterns of a run, in blocks of queries: recorded, or computed again from queries and keys.
#
# The patterns of a long prompt do not fit into memory: 6,000 tokens have 144 MB for each head. Queries and keys do.

BLOCK = 256  # number of queries whose patterns are used at once


class FrozenPattern:
    """The pattern (H, T, T') of an attention, in blocks of queries."""

    mask: AttentionMask

    def blocks(self, reached: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """The first and the last + 1 of the queries of each block with a query in ``reached``."""
        for block in np.unique(reached // BLOCK).tolist():
            own = reached[(reached >= block * BLOCK) & (reached < (block + 1) * BLOCK)]
            yield int(own[0]), int(own[-1]) + 1

    def keys(self, start: int, stop: int) -> range:
        """The keys that the queries from ``start`` to ``stop`` - 1 see."""
        return range(self.mask.seen(start).start, self.mask.seen(stop - 1).stop)

    def rows(self, start: int, stop: int) -> tuple[int, Rows]:
        """The first key, and the weights (H, n, keys) of the queries from ``start`` to ``stop`` - 1."""
        raise NotImplementedError


class RecordedPattern(FrozenPattern):
    def __init__(self, pattern: Rows, mask: AttentionMask) -> None:
        self._pattern, self.mask = pattern, mask

    def rows(self, start: int, stop: int) -> tuple[int, Rows]:
        keys = self.keys(start, min(stop, self._pattern.shape[1]))
        return keys.start, self._pattern[:, start:stop, keys.start : keys.stop]


class ComputedPattern(FrozenPattern):
    """The pattern softmax(softcap(scale · q Kᵀ)) of queries (T, H, K), keys (T, G, K), and ``sinks`` (H,) or None."""

    def __init__(
        self, q: Rows, k: Rows, mask: AttentionMask, scale: float, softcap: float, sinks: NDArray[np.float64] | None
    ) -> None:
        self._q, self._k = q.swapaxes(0, 1), k.swapaxes(0, 1)
        self.mask, self._scale, self._softcap, self._sinks = mask, scale, softcap, sinks

    def rows(self, start: int, stop: int) -> tuple[int, Rows]:
        keys = self.keys(start, stop)
        (H, _, K), G = self._q.shape, len(self._k)
        q = self._q[:, start:stop].reshape(G, -1, K)
        scores = np.matmul(q, self._k[:, keys.start : keys.stop].swapaxes(1, 2)) * np.float32(self._scale)
        scores = scores.reshape(H, stop - start, len(keys))
        if self._softcap:
            cap = np.float32(self._softcap)
            scores = cap * np.tanh(scores / cap)
        for number, position in enumerate(range(start, stop)):
            seen = self.mask.seen(position)
            scores[:, number, : seen.start - keys.start] = -np.inf
            scores[:, number, seen.stop - keys.start :] = -np.inf
        top = scores.max(-1, keepdims=True)
        sinks = None if self._sinks is None else self._sinks.astype(np.float32)[:, None, None]
        top = top if sinks is None else np.maximum(top, sinks)
        weights = np.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        weights /= total if sinks is None else total + np.exp(sinks - top)
        return keys.start, weights.astype(np.float32)


def mask_of(op: Operation) -> AttentionMask:
    fields = ("causal", "window", "chunked", "cross")
    causal, window, chunked, cross = (size_of(op, name) for name in fields)
    return AttentionMask(bool(causal), window, bool(chunked), bool(cross))


def frozen_pattern(op: Operation, values: Values, *, recorded: bool) -> FrozenPattern:
    mask, T = mask_of(op), values.sequences[0].stop
    if recorded:
        return RecordedPattern(values.patterns[0][:, :T], mask)
    K, H, G = op.kernel["head_dim"], size_of(op, "heads"), size_of(op, "kv_heads")
    q, k = values.values["q"], values.values["k"]
    sinks = op.fields["sinks"]
    own = vector_of(values.weights, sinks, H) if isinstance(sinks, Vector) else None
    q, k = q[:T, : H * K].reshape(T, H, K), k[:T, : G * K].reshape(T, G, K)
    return ComputedPattern(q, k, mask, number_of(op, "scale"), number_of(op, "softcap"), own)


def refuse_biases(op: Operation) -> None:
    """Raise InvalidRequest if the scores of an attention have biases, so that its pattern must be recorded."""
    if isinstance(op.fields["bias"], At) or op.fields["bias"]:
        raise InvalidRequest(
            f"the patterns of {op.stage} have biases by position, and are too large for the budget: give a larger "
            "budget, or a shorter prompt"
        )


GATES = ("sigmoid",)  # activations that gate a value, and are frozen


def frozen_product_of(op: Operation, *, recorded_patterns: bool = True) -> KernelProduct:
    """The product of an operation in the local replacement model.

    Without ``recorded_patterns`` attentions compute their patterns again. Raises InvalidRequest if the operation has
    none.
    """
    name = products.FORMS.get(op.kernel.name, op.kernel.name)
    if name == "activation" and op.kernel["kind"] in GATES:
        return KernelProduct(gate, ("up",), inputs=("x",))
    if name == "attention":
        if recorded_patterns:
            return KernelProduct(partial(attention, recorded=True), ("v",), patterns=True)
        refuse_biases(op)
        return KernelProduct(partial(attention, recorded=False), ("v",), inputs=("q", "k"))
    if name in FROZEN:
        return FROZEN[name]
    if name in UNREAD or name == "heads":
        return products.product_of(op)
    raise InvalidRequest(f"attribution graphs do not go through {op.stage} ({op.kernel.name})")


def norm(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """A norm with a constant scale. A layer norm still subtracts the mean."""
    weight, centred, size = products.normed(op, values)
    factor = weight / size
    inner = products.norm_parts(op, gradient).reshape(-1, *centred.shape) * factor.astype(np.float32)
    if op.kernel["kind"] == "layer":
        inner -= inner.mean(-1, keepdims=True)
    found = np.zeros((len(gradient), values.values["x"].shape[1]), np.float32)
    products.norm_parts(op, found)[:] = inner.reshape(len(gradient), *centred.shape[1:])
    yield "x", found


def gate(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    width = size_of(op, "width")
    x = values.values["x"][:, :width]
    f = activation_reference(op.kernel["kind"], x).astype(np.float32)
    yield "up", (gradient[:, :width].reshape(-1, *x.shape) * f).reshape(-1, width)


def activation(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    width = size_of(op, "width")
    inputs = {name: values.values[name][:, :width] for name in ("x", "up") if name in values.values}
    g = gradient[:, :width].reshape(-1, *inputs["x"].shape)
    for name, factors in linear_activation(op, inputs).items():
        yield name, (g * factors.astype(np.float32)).reshape(-1, width)


def linear_activation(op: Operation, inputs: Mapping[str, Rows]) -> dict[str, NDArray[np.float64]]:
    """The factors (T, F) of the inputs "x" and "up" in the linear form of f(x) · up: the ratio f(x) / x is constant."""
    x = inputs["x"]
    kind, limit, sharpness = op.kernel["kind"], number_of(op, "limit"), number_of(op, "sharpness")
    neutral: Any = 1.0 if kind != "clamped_silu" else np.zeros_like(x)
    x64 = x.astype(np.float64)
    f = activation_reference(kind, x, neutral, limit, sharpness)
    zero = np.abs(x64) < 1e-12
    ratio = np.divide(f, x64, out=f, where=~zero)
    if zero.any():
        ratio[zero] = derivative(kind, x[zero], None if kind != "clamped_silu" else x[zero] * 0, limit, sharpness)[1]
    if "up" not in inputs:
        return {"x": ratio}
    factor = inputs["up"].astype(np.float64)
    if kind == "clamped_silu":
        factor = np.clip(factor, -limit, limit) + 1.0
    return {"x": 0.5 * ratio * factor, "up": 0.5 * ratio * x64}


def pick(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    count = values.sequences[0].stop
    spread = np.zeros((len(gradient) // len(values.picked), count, gradient.shape[1]), np.float32)
    spread[:, values.picked] = gradient.reshape(len(spread), len(values.picked), -1)
    yield "x", spread.reshape(-1, gradient.shape[1])


def clip(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    width = size_of(op, "width")
    x = values.values["x"][:, :width]
    inside = np.abs(x) < number_of(op, "bound")
    yield "x", (gradient[:, :width].reshape(-1, *x.shape) * inside).reshape(-1, width)


def attention(op: Operation, gradient: Rows, values: Values, *, recorded: bool) -> Iterator[tuple[str, Rows]]:
    """Constant patterns times values: the gradient of the values "v"."""
    pattern = frozen_pattern(op, values, recorded=recorded)
    H, G, V = size_of(op, "heads"), size_of(op, "kv_heads"), op.kernel["value_dim"]
    T, N = values.sequences[0].stop, len(gradient) // values.sequences[0].stop
    g = gradient[:, : H * V].reshape(N, T, H, V)
    found = np.zeros((N, T, G, V), np.float32)
    reached = np.flatnonzero(g.any((0, 2, 3)))
    for start, stop in pattern.blocks(reached):
        first, weights = pattern.rows(start, stop)  # (H, n, keys)
        seen = slice(first, first + weights.shape[2])
        for head in range(H):
            rows = np.ascontiguousarray(g[:, start:stop, head].swapaxes(0, 1)).reshape(stop - start, N * V)
            made = (weights[head].T @ rows).reshape(-1, N, V)
            found[:, seen, head * G // H] += made.swapaxes(0, 1)
    yield "v", found.reshape(N * T, G * V)


def convolve(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """f(z) of a convolution z, with a constant ratio f(z) / z."""
    own, T = Convolution(op, values), values.sequences[0].stop
    g = gradient[:, : own.width].reshape(-1, T, own.width).astype(np.float64)
    if op.kernel["silu"]:
        g = g / (1 + np.exp(-own(values.values["x"][:, : own.width])))
    yield "x", own.back(g).reshape(len(gradient), own.width).astype(np.float32)


def scan(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """A scan with constant queries, keys, decays and factors, which is linear in the values."""
    T, H, V = values.sequences[0].stop, size_of(op, "heads"), size_of(op, "value_dim")
    q, k, _, a, b = (one.astype(np.float32) for one in scanned_values(op, values, slice(0, T)))
    g = gradient[:, : H * V].reshape(-1, T, H, V)
    skip = op.fields["skip"]
    factor = vector_of(values.weights, skip, H) if isinstance(skip, Vector) else np.zeros(H)
    found = g * factor.astype(np.float32)[:, None]
    of_state = np.zeros((len(g), H, q.shape[2], V), np.float32)
    for t in range(T - 1, -1, -1):
        of_state += q[t][:, :, None] * g[:, t, :, None, :]
        of_new = b[t][:, None] * np.matmul(k[t][:, None], of_state)[:, :, 0]
        found[:, t] += of_new
        if op.kernel["delta"]:
            of_state -= k[t][:, :, None] * of_new[:, :, None, :]
        of_state *= a[t][:, None, None]
    made = np.zeros((len(gradient), values.values["v"].shape[1]), np.float32)
    made[:, : H * V] = found.reshape(len(gradient), H * V)
    yield "v", made


def unchanged(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    yield "x", gradient


UNREAD = (
    "matmul",
    "quantize",
    "sinusoidal",
    "embedding",
    "embedding_rows",
    "add",
    "scale",
    "scale_by",
    "matmul_heads",
    "streams_spread",
)
"""Kernels whose product reads no values of the run, so that it takes any number of rows."""
FROZEN: Mapping[str, KernelProduct] = {
    "norm": KernelProduct(norm, inputs=("x",)),
    "activation": KernelProduct(activation, ("x", "up"), inputs=("x", "up")),
    "pick": KernelProduct(pick),
    "clip": KernelProduct(clip, inputs=("x",)),
    "softcap": KernelProduct(unchanged),
    "convolve": KernelProduct(convolve, inputs=("x",)),
    "scan": KernelProduct(scan, ("v",), inputs=SCANNED),
    "streams_predict": KernelProduct(mixed, ("streams",), inputs=("coefs",)),
    "streams_correct": KernelProduct(changed, ("predicted", "x"), inputs=("coefs",)),
    "streams_match": KernelProduct(rescaled, inputs=("x", "like")),
}
