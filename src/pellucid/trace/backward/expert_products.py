"""The vector-Jacobian products of mixtures of experts: the router's weights, the experts, and the sum of results."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pellucid.plan.plan import Operation, Vector, Weights
from pellucid.trace.backward.product_values import Rows, Values, number_of, size_of, vector_of
from pellucid.util.probabilities import exponentials


def choices(rows: Rows, chosen: int) -> NDArray[np.int32]:
    """The numbers of the chosen experts (T, C), which are recorded as the bits of float32."""
    return np.ascontiguousarray(rows).view(np.int32)[:, :chosen]


def opened_gate(rows: Rows) -> NDArray[np.float64]:
    """The gate (T, 1) of the shared expert, after its sigmoid."""
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
