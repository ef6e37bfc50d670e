"""The vector-Jacobian product of each kernel: from the gradients of its outputs to the gradients of its inputs.

``PRODUCTS`` maps the name of a kernel to its product. A product may read recorded inputs and outputs of the operation,
which ``needs`` lists. Gradients are float32 (n, width), in the layout of the buffers; n are the rows of all sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.kernels.ops.elementwise import derivative
from pellucid.kernels.ops.positions import query_scale_reference
from pellucid.plan.plan import At, Constant, Operation, Weights
from pellucid.trace.backward.layer_products import (
    combine,
    convolve,
    correct,
    decay,
    experts,
    match,
    predict,
    route,
    scan,
    sparsify,
    spread,
    weigh,
)
from pellucid.trace.backward.reverse_walk import KernelProduct, Rows, Values, number_of, size_of, vector_of


def product_of(op: Operation) -> KernelProduct:
    """The product of an operation. Raises InvalidRequest if the operation has none."""
    name = op.kernel.name
    found = PRODUCTS.get(FORMS.get(name, name))
    if name == "heads" and size_of(op, "offset"):
        return KernelProduct(heads, ("x", "out"))
    if found is None:
        raise InvalidRequest(
            f"gradients do not go through {op.stage} ({name}): choose points after it, or another model"
        )
    return found


def matmul(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """x Wᵀ + bias: the gradient of x is the gradient times W, quantised or not (``ModelWeights.product``)."""
    weights, out = op.fields["weights"], op.fields["out"]
    assert isinstance(weights, Weights)
    assert isinstance(out, At)
    own = gradient[:, out.offset // 4 :]
    columns = np.flatnonzero(own.any(0))
    if len(columns) <= FEW:  # the difference of two logits needs only two rows of a large matrix
        rows = [values.weights.rows(weights.slot, int(at), int(at) + 1) for at in columns]
        matrix = np.concatenate(rows) if rows else np.zeros((0, size_of(op, "columns")), np.float32)
        yield "x", own[:, columns] @ matrix
        return
    yield "x", values.weights.product(own, weights.slot)


def identity(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    yield "x", gradient


def embedding(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """A row of a matrix. If it is added to the buffer, the gradient passes to the value before."""
    if size_of(op, "accumulate"):
        yield "out", gradient


def add(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    yield "a", gradient
    yield "b", gradient * np.float32(number_of(op, "factor"))


def pick(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    spread = np.zeros((values.sequences[-1].stop, gradient.shape[1]), np.float32)
    spread[values.picked] = gradient
    yield "x", spread


def scale(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """factor * x."""
    factor = op.fields["factor"]
    number = factor if isinstance(factor, (int, float)) else vector_of(values.weights, factor, 1)[0]
    yield "x", gradient * np.float32(number)


def clip(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    width = size_of(op, "width")
    yield "x", gradient[:, :width] * (np.abs(values.values["x"][:, :width]) < number_of(op, "bound"))


def softcap(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """cap * tanh(x / cap), whose derivative is 1 - (y / cap)²."""
    width = size_of(op, "width")
    y = values.values["out.x"][:, :width].astype(np.float64) / number_of(op, "cap")
    yield "x", (gradient[:, :width] * (1 - y * y)).astype(np.float32)


def query_scale(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """A factor that depends on the position."""
    beta, length, offset = number_of(op, "beta"), size_of(op, "length"), size_of(op, "offset")
    yield "x", query_scale_reference(gradient, values.positions, beta, length, offset).astype(np.float32)


def heads(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """A copy of heads into heads of another width, after the first ``offset`` values of each head."""
    x, out = op.fields["x"], op.fields["out"]
    assert isinstance(x, At)
    assert isinstance(out, At)
    if out.offset:
        raise InvalidRequest(f"gradients do not go through {op.stage}, which writes a part of a row")
    count, width, padded = size_of(op, "heads"), size_of(op, "width"), size_of(op, "out_width")
    offset = size_of(op, "offset")
    copied = min(width, padded - offset)
    own = gradient[:, : count * padded].reshape(len(gradient), count, padded)
    spread = np.zeros((len(gradient), size_of(op, "x_stride") // 4), np.float32)
    first = x.offset // 4
    part = spread[:, first : first + count * width].reshape(len(gradient), count, width)
    part[:, :, :copied] = own[:, :, offset : offset + copied]
    yield "x", spread
    if offset:
        before = np.zeros_like(gradient)
        before[:, : count * padded].reshape(own.shape)[:, :, :offset] = own[:, :, :offset]
        yield "out", before


def matmul_heads(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    weights, count, columns = op.fields["weights"], size_of(op, "heads"), size_of(op, "columns")
    assert isinstance(weights, Weights)
    matrices = values.weights.values(weights.slot)
    matrices = matrices.reshape(count, -1, matrices.shape[-1])
    width = size_of(op, "out_head") // 4
    own = gradient[:, : count * width].reshape(len(gradient), count, width)[:, :, : matrices.shape[1]]
    found = np.zeros((len(gradient), count, columns), np.float32)
    found[:, :, : matrices.shape[2]] = np.matmul(own.swapaxes(0, 1), matrices).swapaxes(0, 1)
    yield "x", found.reshape(len(gradient), -1)


def norm(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    weight, centred, size = normed(op, values)
    g, inverse = norm_parts(op, gradient).astype(np.float64) * weight, 1 / size
    unit = centred * inverse
    inner = g - unit * (g * unit).mean(-1, keepdims=True)
    if op.kernel["kind"] == "layer":
        inner -= g.mean(-1, keepdims=True)
    found = np.zeros(values.values["x"].shape, np.float32)
    norm_parts(op, found)[:] = inner * inverse
    yield "x", found


def normed(op: Operation, values: Values) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The weights of a norm, its centred input (T, parts, count), and the root mean square of each part."""
    parts, count, of_part = size_of(op, "parts"), size_of(op, "count"), size_of(op, "weight_part") // 4
    weight = vector_of(values.weights, op.fields["weight"], parts * of_part if of_part else count)
    weight = weight.reshape(parts, of_part)[:, :count] if of_part else weight
    x = norm_parts(op, values.values["x"]).astype(np.float64)
    centred = x - x.mean(-1, keepdims=True) if op.kernel["kind"] == "layer" else x
    return weight, centred, np.sqrt((centred * centred).mean(-1, keepdims=True) + number_of(op, "eps"))


def norm_parts(op: Operation, rows: Rows) -> Rows:
    """A view (n, parts, count) of the parts of rows that a norm reads or writes."""
    parts, width, count = size_of(op, "parts"), size_of(op, "width"), size_of(op, "count")
    return rows[:, : parts * width].reshape(len(rows), parts, width)[:, :, :count]


def activation(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """f(x) * up, or f(x)."""
    width, gated = size_of(op, "width"), isinstance(op.fields["up"], At)
    gradient, x = gradient[:, :width], values.values["x"][:, :width]
    up = values.values["up"][:, :width] if gated else None
    _, slope, of_up = derivative(op.kernel["kind"], x, up, number_of(op, "limit"), number_of(op, "sharpness"))
    yield "x", (gradient * slope).astype(np.float32)
    if gated:
        yield "up", (gradient * of_up).astype(np.float32)


def rotary(op: Operation, gradient: Rows, values: Values) -> Iterator[tuple[str, Rows]]:
    """A rotation: the gradient is rotated backwards."""
    angles = op.fields["angles"]
    assert isinstance(angles, At)
    table = next(one for one in reversed(values.plan.operations) if angles.buffer in one.writes)
    pairs, count, width = size_of(op, "pairs"), size_of(op, "heads"), size_of(op, "head_dim")
    if table.stage not in values.angles:
        constant, magnitude = table.fields["inverse_frequency"], number_of(table, "magnitude")
        assert isinstance(constant, Constant)
        frequencies = np.array(values.plan.constants[constant.name]).reshape(-1, size_of(table, "pairs"))
        own = frequencies[values.longer_than(size_of(table, "unscaled"))]
        angle = (values.positions[:, None] * own)[:, None, :]
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
    heads_, groups = size_of(op, "heads"), size_of(op, "kv_heads")
    width, value_width, each = op.kernel["head_dim"], op.kernel["value_dim"], heads_ // groups
    scale_, cap = number_of(op, "scale"), number_of(op, "softcap")
    if cap and op.fields["bias"]:
        raise InvalidRequest(f"gradients do not go through {op.stage}, whose capped scores have biases")
    q, k, v = (values.values[name] for name in "qkv")
    of_q, of_k, of_v = (np.zeros_like(rows) for rows in (q, k, v))
    for number, own in enumerate(values.sequences):
        pattern = values.patterns[number].reshape(groups, each, *values.patterns[number].shape[1:])
        g = _by_group(gradient[own], groups, each, value_width)
        queries = _by_group(q[own], groups, each, width)
        keys, vectors = (_by_group(k[own], groups, 1, width)[:, 0], _by_group(v[own], groups, 1, value_width)[:, 0])
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


def _by_group(rows: Rows, groups: int, each: int, width: int) -> Rows:
    """Rows (T, groups * each * width) as (groups, each, T, width)."""
    parts = rows[:, : groups * each * width].reshape(len(rows), groups, each, width)
    return np.ascontiguousarray(parts.transpose(1, 2, 0, 3))


def _put(rows: Rows, parts: Rows, width: int) -> None:
    """Write parts (groups, each, T, width) to rows (T, groups * each * width)."""
    groups, each = parts.shape[:2]
    rows[:, : groups * each * width] = parts.transpose(2, 0, 1, 3).reshape(len(rows), -1)


FEW = 8
SCANNED = ("q", "k", "v", "decays", "factors")
FORMS = {
    f"matmul{kind}_{form}": f"matmul{kind}" for kind in ("", "_experts", "_heads") for form in ("float", "int8", "bf16")
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
    "matmul_heads": KernelProduct(matmul_heads),
    "convolve": KernelProduct(convolve, inputs=("x",)),
    "decay": KernelProduct(decay, inputs=("x",)),
    "scan": KernelProduct(scan, SCANNED, inputs=SCANNED),
    "norm": KernelProduct(norm, inputs=("x",)),
    "activation": KernelProduct(activation, ("x", "up"), inputs=("x", "up")),
    "route": KernelProduct(route, ("scores",), inputs=("scores",), outputs=("ids",)),
    "matmul_experts": KernelProduct(experts, choices=True),
    "weigh": KernelProduct(weigh, ("x", "weights"), inputs=("x", "weights")),
    "combine": KernelProduct(
        combine, ("results", "weights", "shared", "gate"), inputs=("results", "weights", "shared", "gate")
    ),
    "rotary": KernelProduct(rotary),
    "streams_predict": KernelProduct(predict, ("streams", "coefs"), inputs=("streams", "coefs")),
    "streams_correct": KernelProduct(correct, ("predicted", "coefs", "x"), inputs=("predicted", "coefs", "x")),
    "streams_spread": KernelProduct(spread, ("streams", "x")),
    "streams_match": KernelProduct(match, ("x", "like"), inputs=("x", "like")),
    "sparsify": KernelProduct(sparsify, inputs=("x",), outputs=("x",)),
    "attention": KernelProduct(attention, ("q", "k", "v"), inputs=("q", "k", "v"), patterns=True),
}
