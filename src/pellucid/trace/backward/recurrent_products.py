"""The vector-Jacobian products of recurrent layers: the convolution, the decays of states, and the scan over tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.plan.plan import At, Operation, Vector
from pellucid.trace.backward.product_values import Rows, Values, number_of, size_of, vector_of

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
        """The gradient of x."""
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
    """The state of each head: S = a S + k ⊗ u, out = Sᵀ q + skip v (``kernels/recurrent/scan.py``)."""
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
    found = {
        name: values.values[name][rows].astype(np.float64) for name in ("q", "k", "v", "decays", "factors")
    }
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
