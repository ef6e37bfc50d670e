"""The vector-Jacobian product of each kernel: from the gradients of its outputs to the gradients of its inputs.

``PRODUCTS`` maps the name of a kernel to its product. A product may read recorded inputs and outputs of the operation,
which ``needs`` lists. Gradients are float32 (n, width), in the layout of the buffers; n are the rows of all sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.kernels.ops.activation import derivative
from pellucid.plan.plan import At, Constant, Fill, Operation, Plan, Vector, Weights
from pellucid.trace.traced_model import ModelWeights
from pellucid.util.probabilities import exponentials as exponentials_of

Rows = NDArray[np.float32]


class Values(Struct, frozen=True):
    """The inputs of a product: recorded ``values`` by field (of outputs: "out." and the field).

    ``patterns`` and ``scores`` of an attention have an array (H, T, T) for each sequence.

    ``sequences`` are the rows of each sequence; its tokens have the positions from 0 on. ``picked`` are the rows that
    the outputs are computed of.
    """

    plan: Plan
    weights: ModelWeights
    values: Mapping[str, Rows]
    sequences: Sequence[slice]
    picked: NDArray[np.int64]
    patterns: Sequence[Rows] = ()
    scores: Sequence[Rows] = ()
    angles: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    """The cosines and sines of rotary positions, (n, 1, pairs), which all products of a backward pass share."""

    @property
    def positions(self) -> NDArray[np.int64]:
        """The position of each row."""
        return np.concatenate([np.arange(own.stop - own.start) for own in self.sequences])


Product = Callable[[Operation, Rows, Values], Iterator[tuple[str, Rows]]]
"""Yields the names of fields, each with the gradient of the buffer that the field names."""


class KernelProduct(Struct, frozen=True):
    """A product, and the fields of the buffers that get a gradient (``passes``).

    It reads the values of ``inputs`` before the operation, and of ``outputs`` after it, and the ``choices`` of experts.

    Attention reads its ``patterns``.
    """

    product: Product
    passes: tuple[str, ...] = ("x",)
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    patterns: bool = False
    choices: bool = False


def product_of(op: Operation) -> KernelProduct:
    """The product of an operation.

    Raises:
        InvalidRequest: the operation has none.
    """
    name = op.kernel.name
    found = PRODUCTS.get(FORMS.get(name, name))
    if found is None:
        raise InvalidRequest(
            f"gradients do not go through {op.stage} ({name}): choose points after it, or a model with attention in "
            "all blocks"
        )
    return found


def vector_of(weights: ModelWeights, value: Any, count: int) -> NDArray[np.float64]:
    """A vector of ``count`` numbers that a field names."""
    if isinstance(value, Fill):
        return np.full(count, value.number)
    assert isinstance(value, Vector)
    return weights.values(value.slot).astype(np.float64).reshape(-1)[:count]


def _number(op: Operation, name: str) -> float:
    value = op.fields[name]
    assert isinstance(value, (int, float))
    return float(value)


def _size(op: Operation, name: str) -> int:
    return int(_number(op, name))


def matmul(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """x Wᵀ + bias: the gradient of x is the gradient times W."""
    weights, out = op.fields["weights"], op.fields["out"]
    assert isinstance(weights, Weights)
    assert isinstance(out, At)
    own = gradient[:, out.offset // 4 :]
    columns = np.flatnonzero(own.any(0))
    if len(columns) <= FEW:  # the difference of two logits needs only two rows of a large matrix
        rows = [values.weights.rows(weights.slot, int(at), int(at) + 1) for at in columns]
        matrix = np.concatenate(rows) if rows else np.zeros((0, _size(op, "columns")), np.float32)
        yield "x", own[:, columns] @ matrix
        return
    matrix = values.weights.values(weights.slot)
    yield "x", own[:, : len(matrix)] @ matrix


def identity(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """The rounding of activations, and additions of constants."""
    yield "x", gradient


def embedding(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """A row of a matrix. If it is added to the buffer, the gradient passes to the value before."""
    if _size(op, "accumulate"):
        yield "out", gradient


def add(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """a + factor * b."""
    yield "a", gradient
    yield "b", gradient * np.float32(_number(op, "factor"))


def pick(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """Some rows."""
    spread = np.zeros((values.sequences[-1].stop, gradient.shape[1]), np.float32)
    spread[values.picked] = gradient
    yield "x", spread


def scale(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """factor * x."""
    factor = op.fields["factor"]
    number = factor if isinstance(factor, (int, float)) else vector_of(values.weights, factor, 1)[0]
    yield "x", gradient * np.float32(number)


def clip(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """min(max(x, -bound), bound)."""
    width = _size(op, "width")
    yield "x", gradient[:, :width] * (np.abs(values.values["x"][:, :width]) < _number(op, "bound"))


def softcap(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """cap * tanh(x / cap), whose derivative is 1 - (y / cap)²."""
    width = _size(op, "width")
    y = values.values["out.x"][:, :width].astype(np.float64) / _number(op, "cap")
    yield "x", (gradient[:, :width] * (1 - y * y)).astype(np.float32)


def query_scale(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """A factor that depends on the position."""
    from pellucid.kernels.ops.query_scale import reference

    beta, length, offset = _number(op, "beta"), _size(op, "length"), _size(op, "offset")
    yield "x", reference(gradient, values.positions, beta, length, offset).astype(np.float32)


def heads(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """A copy of heads into heads of another width."""
    x, out = op.fields["x"], op.fields["out"]
    assert isinstance(x, At)
    assert isinstance(out, At)
    if x.offset or out.offset or _size(op, "offset"):
        raise InvalidRequest(f"gradients do not go through {op.stage}, which joins parts of heads")
    count, width, padded = _size(op, "heads"), _size(op, "width"), _size(op, "out_width")
    copied = min(width, padded)
    own = gradient[:, : count * padded].reshape(len(gradient), count, padded)[:, :, :copied]
    spread = np.zeros((len(gradient), _size(op, "x_stride") // 4), np.float32)
    spread[:, : count * width].reshape(len(gradient), count, width)[:, :, :copied] = own
    yield "x", spread


def norm(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """Layer norm or RMS of each part of a row."""
    parts, width, count, eps = (
        _size(op, "parts"),
        _size(op, "width"),
        _size(op, "count"),
        _number(op, "eps"),
    )
    of_part = _size(op, "weight_part") // 4
    weight = vector_of(values.weights, op.fields["weight"], parts * of_part if of_part else count)
    weight = weight.reshape(parts, of_part)[:, :count] if of_part else weight
    x, g = (
        rows[:, : parts * width].reshape(len(rows), parts, width)[:, :, :count].astype(np.float64)
        for rows in (values.values["x"], gradient)
    )
    g = g * weight
    centred = x - x.mean(-1, keepdims=True) if op.kernel["kind"] == "layer" else x
    inverse = 1 / np.sqrt((centred * centred).mean(-1, keepdims=True) + eps)
    unit = centred * inverse
    inner = g - unit * (g * unit).mean(-1, keepdims=True)
    if op.kernel["kind"] == "layer":
        inner -= g.mean(-1, keepdims=True)
    found = np.zeros(values.values["x"].shape, np.float32)
    found[:, : parts * width].reshape(len(x), parts, width)[:, :, :count] = inner * inverse
    yield "x", found


def activation(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """f(x) * up, or f(x)."""
    width, gated = _size(op, "width"), isinstance(op.fields["up"], At)
    gradient, x = gradient[:, :width], values.values["x"][:, :width]
    up = values.values["up"][:, :width] if gated else None
    _, slope, of_up = derivative(op.kernel["kind"], x, up, _number(op, "limit"), _number(op, "sharpness"))
    yield "x", (gradient * slope).astype(np.float32)
    if gated:
        yield "up", (gradient * of_up).astype(np.float32)


def rotary(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """A rotation: the gradient is rotated backwards."""
    angles = op.fields["angles"]
    assert isinstance(angles, At)
    table = next(one for one in reversed(values.plan.operations) if angles.buffer in one.writes)
    pairs, count, width = _size(op, "pairs"), _size(op, "heads"), _size(op, "head_dim")
    if table.stage not in values.angles:
        constant, magnitude = table.fields["inverse_frequency"], _number(table, "magnitude")
        assert isinstance(constant, Constant)
        angle = (values.positions[:, None] * np.array(values.plan.constants[constant.name]))[:, None, :]
        values.angles[table.stage] = magnitude * np.cos(angle), magnitude * np.sin(angle)
    cos, sin = (part[:, :, :pairs] for part in values.angles[table.stage])
    found = gradient.copy()
    x = found[:, : count * width].reshape(len(found), count, width)
    first, second = slice(0, pairs), slice(pairs, 2 * pairs)
    if op.kernel["pairing"] == "interleaved":
        first, second = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    a, b = x[:, :, first].astype(np.float64), x[:, :, second].astype(np.float64)
    x[:, :, first], x[:, :, second] = a * cos + b * sin, b * cos - a * sin
    yield "x", found


def attention(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """softmax(scale q Kᵀ + bias) V of each sequence. Yields also the gradients of "k", "v", "pattern" and "scores"."""
    heads_, groups = _size(op, "heads"), _size(op, "kv_heads")
    width, value_width, each = op.kernel["head_dim"], op.kernel["value_dim"], heads_ // groups
    scale_, cap = _number(op, "scale"), _number(op, "softcap")
    if cap and op.fields["bias"]:
        raise InvalidRequest(f"gradients do not go through {op.stage}, whose capped scores have biases")
    q, k, v = (values.values[name] for name in "qkv")
    of_q, of_k, of_v = (np.zeros_like(rows) for rows in (q, k, v))
    for number, own in enumerate(values.sequences):
        pattern = values.patterns[number].reshape(groups, each, *values.patterns[number].shape[1:])
        g = _by_group(gradient[own], groups, each, value_width)
        queries = _by_group(q[own], groups, each, width)
        keys, vectors = (
            _by_group(k[own], groups, 1, width)[:, 0],
            _by_group(v[own], groups, 1, value_width)[:, 0],
        )
        of_pattern = np.matmul(g, vectors[:, None].swapaxes(-1, -2))
        of_scores = pattern * (of_pattern - (of_pattern * pattern).sum(-1, keepdims=True))
        yield f"pattern.{number}", of_pattern.reshape(values.patterns[number].shape)
        yield f"scores.{number}", of_scores.reshape(values.patterns[number].shape)
        if cap:
            scores = values.scores[number].reshape(pattern.shape)
            ratio = np.where(np.isfinite(scores), scores, 0) / np.float32(cap)
            of_scores = of_scores * (1 - ratio * ratio)
        of_scores = of_scores * np.float32(scale_)
        _put(of_q[own], np.matmul(of_scores, keys[:, None]), width)
        _put(of_k[own], np.matmul(of_scores.swapaxes(-1, -2), queries).sum(1, keepdims=True), width)
        _put(of_v[own], np.matmul(pattern.swapaxes(-1, -2), g).sum(1, keepdims=True), value_width)
    yield "q", of_q
    yield "k", of_k
    yield "v", of_v


def exponentials(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """e^x of each of the values, with the same bits on all processors."""
    return exponentials_of(values.reshape(-1)).reshape(values.shape)


def _ids(rows: Rows, chosen: int) -> NDArray[np.int32]:
    """The numbers of the chosen experts (T, C), which are recorded as the bits of float32."""
    return np.ascontiguousarray(rows).view(np.int32)[:, :chosen]


def route(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """The weights of the chosen experts: softmax or sigmoid of the scores, normalised, times a factor."""
    experts_, chosen = _size(op, "experts"), _size(op, "chosen")
    ids = _ids(values.values["out.ids"], chosen).astype(np.int64)
    x = values.values["scores"][:, :experts_].astype(np.float64)
    softmax = op.kernel["kind"] == "softmax"
    p = exponentials(x - x.max(-1, keepdims=True)) if softmax else 1 / (1 + exponentials(-x))
    p = p / p.sum(-1, keepdims=True) if softmax else p
    g = gradient[:, :chosen].astype(np.float64) * _number(op, "factor")
    if isinstance(op.fields["factors"], Vector):
        g = g * vector_of(values.weights, op.fields["factors"], experts_)[ids]
    if _size(op, "normalize"):
        own = np.take_along_axis(p, ids, -1)
        total = own.sum(-1, keepdims=True)
        g = (g - (g * own).sum(-1, keepdims=True) / total) / total
    of_p = np.zeros_like(p)
    np.put_along_axis(of_p, ids, g, -1)
    of_x = p * (of_p - (of_p * p).sum(-1, keepdims=True)) if softmax else of_p * p * (1 - p)
    yield "scores", of_x.astype(np.float32)


def experts(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """The product of each choice's row with the matrix of its expert. ``gathered``: x has one row for each token."""
    weights, columns, count = op.fields["weights"], _size(op, "columns"), _size(op, "experts")
    assert isinstance(weights, Weights)
    view, width = op.views[0], _size(op, "out_stride") // 4
    assert view is not None
    chosen = view.parts
    ids, matrices = _ids(values.values["ids"], chosen), values.weights.values(weights.slot)
    matrices = matrices.reshape(count, -1, matrices.shape[-1])
    rows = gradient[:, : chosen * width].reshape(len(gradient), chosen, width)[:, :, : matrices.shape[1]]
    of_x = np.zeros((len(gradient), chosen, columns), np.float32)
    for expert in np.unique(ids):
        own = ids == expert
        of_x[own, : matrices.shape[2]] = rows[own] @ matrices[expert]
    yield "x", of_x.sum(1) if op.kernel["gathered"] else of_x.reshape(len(gradient), -1)


def weigh(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """Rows of choices, times the weights of the choices."""
    chosen = _size(op, "chosen")
    x = values.values["x"]
    gradient = gradient[:, : x.shape[1]]
    parts = [rows.reshape(len(rows), chosen, -1) for rows in (gradient, x)]
    weights = values.values["weights"][:, :chosen]
    yield "x", (parts[0] * weights[:, :, None]).reshape(len(gradient), -1)
    yield "weights", (parts[0] * parts[1]).sum(-1)


def combine(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """The weighted sum of the results of the choices, plus the shared expert's result times its gate."""
    chosen, found, gradient = _size(op, "chosen"), values.values, gradient[:, : _size(op, "width")]
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
    gate = 1 / (1 + exponentials(-found["gate"][:, :1].astype(np.float64)))
    yield "shared", (gradient * gate).astype(np.float32)
    of_gate = (gradient * found["shared"][:, : gradient.shape[1]]).sum(-1, keepdims=True) * gate * (1 - gate)
    yield "gate", of_gate.astype(np.float32)


def _by_group(rows: Rows, groups: int, each: int, width: int) -> Rows:
    """Rows (T, groups * each * width) as (groups, each, T, width)."""
    parts = rows[:, : groups * each * width].reshape(len(rows), groups, each, width)
    return np.ascontiguousarray(parts.transpose(1, 2, 0, 3))


def _put(rows: Rows, parts: Rows, width: int) -> None:
    """Write parts (groups, each, T, width) to rows (T, groups * each * width)."""
    groups, each = parts.shape[:2]
    rows[:, : groups * each * width] = parts.transpose(2, 0, 1, 3).reshape(len(rows), -1)


FEW = 8
FORMS = {
    f"matmul{kind}_{form}": f"matmul{kind}" for kind in ("", "_experts") for form in ("float", "int8", "bf16")
}
"""The kernels of a product with a matrix, by the form of its numbers."""
PRODUCTS: Mapping[str, KernelProduct] = {
    "matmul": KernelProduct(matmul),
    "quantize": KernelProduct(identity),
    "sinusoidal": KernelProduct(identity),
    "embedding": KernelProduct(embedding, ("out",)),
    "embedding_rows": KernelProduct(embedding, ("out",)),
    "add": KernelProduct(add, ("a", "b")),
    "pick": KernelProduct(pick),
    "scale": KernelProduct(scale),
    "scale_by": KernelProduct(scale),
    "clip": KernelProduct(clip, inputs=("x",)),
    "softcap": KernelProduct(softcap, outputs=("x",)),
    "query_scale": KernelProduct(query_scale),
    "heads": KernelProduct(heads),
    "norm": KernelProduct(norm, inputs=("x",)),
    "activation": KernelProduct(activation, ("x", "up"), inputs=("x", "up")),
    "route": KernelProduct(route, ("scores",), inputs=("scores",), outputs=("ids",)),
    "matmul_experts": KernelProduct(experts, choices=True),
    "weigh": KernelProduct(weigh, ("x", "weights"), inputs=("x", "weights")),
    "combine": KernelProduct(
        combine, ("results", "weights", "shared", "gate"), inputs=("results", "weights", "shared", "gate")
    ),
    "rotary": KernelProduct(rotary),
    "attention": KernelProduct(attention, ("q",), inputs=("q",), patterns=True),
}
