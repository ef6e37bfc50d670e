"""Recurrent layers, which keep a state of fixed size instead of all earlier tokens: convolution and scan."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Count, Record, StepRecord
from pellucid.kernels.ops.elementwise import sigmoid_vector

# The recurrence of Mamba-2 and Gated DeltaNet: each head's state is a matrix S that every token updates.
#
#     S = a_t S + k_t ⊗ u_t             out_t = Sᵀ q_t + skip v_t                    S (K, V); q, k (K,); u, v (V,)
#
#   Mamba-2            u_t = b_t v_t                              (Dao and Gu 2024: k is B, q is C, b the step, v is x)
#   Gated DeltaNet     u_t = b_t (v_t - (a_t S)ᵀ k_t)             (Yang et al. 2024: the prediction of S is subtracted)
#
# In: queries and keys (T, G, K), values (T, H, V), a and b (T, H). Several heads share the queries and keys of one
# group. Out: (T, H, V). The state of a sequence is (H, K, V) float32; before the first token it is zeros. The state's
# columns are stored in blocks of 64, (H, V / 64, K, 64); the remaining columns are in blocks of 16.
#
# The columns of S do not depend on each other. A thread therefore updates 64 columns of one head for all tokens of a
# sequence. One pass over the rows computes a token, and also Sᵀ k of the next token. This pass sums the same numbers in
# the same order as a separate pass, so the bits do not depend on the split of a sequence into steps.


class StateRecord(Record):
    """Fields of kernels with a state: they locate a sequence's rows, and its state in the cache."""

    state: Address  # the layer's state in page 0
    page_bytes: int  # from one page to the next


def state_sequence(simd: Any, at: Any) -> Any:
    """Make the helper that locates a sequence; ``at`` holds the field offsets of the record.

    (record, step, sequence) → (address of the state before the step, or 0 for a new sequence; address of the
    state after the step; the sequence's first row; its number of rows)
    """
    step_at, load, load_i32 = StepRecord.at, simd.load_i64, simd.load_i32

    @simd.jit
    def sequence_of(record, step, sequence):
        state, size, index = load(record + at.state), load(record + at.page_bytes), 4 * sequence
        before = load_i32(load(step + step_at.states) + index)
        after = load_i32(load(step + step_at.next_states) + index)
        first = load_i32(load(step + step_at.first_row) + index)
        count = load_i32(load(step + step_at.row_count) + index)
        source = state + before * size
        if before < 0:
            source = 0
        return source, state + after * size, first, count

    return sequence_of


class DecayRecord(Record):
    """The decay of each head's state at a token, and the token's step size (Dao and Gu 2024, Mamba-2).

        steps = clamp(softplus(x + bias), low, high)        decays = e^(rate * steps)         (T, H) → (T, H), (T, H)

    softplus(x) = max(x, 0) + log(1 + e^-|x|); the logarithm is the series 2 atanh(s) with s = u / (2 + u), u = e^-|x|.
    """

    x: Address  # (T, H) float32; overwritten with the steps
    width: int  # H, a multiple of 16
    bias: Address  # (H,) float32
    rate: Address  # (H,) float32, negative
    low: float
    high: float
    decays: Address  # (T, H) float32
    rows: Count


def decay_reference(
    x: NDArray[Any], bias: NDArray[Any], rate: NDArray[Any], low: float = 0.0, high: float = np.inf
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the steps and decays in float64."""
    steps = np.clip(np.logaddexp(0.0, x.astype(np.float64) + bias), low, high)
    return steps, np.exp(rate * steps)


@kernel("decay", DecayRecord)
def build_decay(simd: Any) -> Any:
    """Build the step sizes and decays of a step's tokens."""
    at, load, vload, vstore = DecayRecord.at, simd.load_i64, simd.vload, simd.vstore
    splat, fma, vexp, vmax, vmin, vabs = simd.splat, simd.fma, simd.vexp, simd.vmax, simd.vmin, simd.vabs
    series = [np.float32(1 / n) for n in (15, 13, 11, 9, 7, 5, 3, 1)]
    s15, s13, s11, s9, s7, s5, s3, s1 = series

    @simd.jit
    def softplus(x):
        u = vexp(splat(0.0) - vabs(x))
        s = u / (u + splat(2.0))
        z = s * s
        p = fma(splat(s15), z, splat(s13))
        p = fma(p, z, splat(s11))
        p = fma(p, z, splat(s9))
        p = fma(p, z, splat(s7))
        p = fma(p, z, splat(s5))
        p = fma(p, z, splat(s3))
        p = fma(p, z, splat(s1))
        return vmax(x, splat(0.0)) + (s + s) * p

    @simd.jit
    def body(record, step, thread, threads):
        x, decays = load(record + at.x), load(record + at.decays)
        bias, rate, row = load(record + at.bias), load(record + at.rate), 4 * load(record + at.width)
        low = splat(np.float32(simd.load_f64(record + at.low)))
        high = splat(np.float32(min(simd.load_f64(record + at.high), 3e38)))
        rows = load(step + load(record + at.rows))
        for r in range(*simd.thread_range(rows, thread, threads)):
            for c in range(0, row, 64):
                steps = vmin(vmax(softplus(vload(x + r * row + c) + vload(bias + c)), low), high)
                vstore(x + r * row + c, steps)
                vstore(decays + r * row + c, vexp(steps * vload(rate + c)))

    return body


COLUMNS = 64  # maximum columns of a head's state in one piece of work


class ScanRecord(StateRecord):
    """``state`` is (H, V / 64, K, 64) float32."""

    q: Address  # (T, G * K) float32
    k: Address  # (T, G * K) float32
    v: Address  # (T, H * V) float32
    decays: Address  # (T, H) float32: a
    factors: Address  # (T, H) float32: b
    head_stride: int  # bytes from one token's a or b to the next
    skip: Address  # (H,) float32, or 0: none
    heads: int  # H
    groups: int  # G
    neighbours: int  # consecutive heads of one group: H / G, or 1 if heads take the groups in turn
    key_dim: int  # K
    value_dim: int  # V, a multiple of 16
    key_stride: int  # bytes from one token's queries or keys to the next
    group_stride: int  # bytes from one group's queries or keys to the next
    out: Address  # (T, H * V) float32


def scan_reference(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    a: NDArray[Any],
    b: NDArray[Any],
    skip: NDArray[Any] | None = None,
    *,
    delta: bool,
    neighbours: int = 0,
) -> NDArray[np.float64]:
    """Compute in float64 the outputs of a whole sequence, starting from a state of zeros.

    q, k (T, G, K), v (T, H, V), a, b (T, H).
    """
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    T, H, V = v.shape
    G = q.shape[1]
    groups = np.arange(H) // (neighbours or H // G) % G
    q, k = q[:, groups], k[:, groups]
    state, out = np.zeros((H, k.shape[-1], V)), np.zeros((T, H, V))
    for t in range(T):
        state *= a[t].astype(np.float64)[:, None, None]
        new = v[t] - np.einsum("hkv,hk->hv", state, k[t]) if delta else v[t]
        state += np.einsum("hk,hv->hkv", k[t], new * b[t].astype(np.float64)[:, None])
        out[t] = np.einsum("hkv,hk->hv", state, q[t])
        if skip is not None:
            out[t] += v[t] * skip.astype(np.float64)[:, None]
    return out


@kernel("scan", ScanRecord)
def scan_build(simd: Any, delta: bool) -> Any:
    """Build the recurrence of a step's sequences. ``delta`` selects Gated DeltaNet."""
    at, step_at, load = ScanRecord.at, StepRecord.at, simd.load_i64
    sequence_of, wide, narrow = state_sequence(simd, at), _columns(simd, delta, 4), _columns(simd, delta, 1)

    @simd.jit
    def body(record, step, thread, threads):
        heads, value_dim = load(record + at.heads), load(record + at.value_dim)
        pieces = (value_dim + COLUMNS - 1) // COLUMNS
        begin, end = simd.thread_range(heads * pieces, thread, threads)
        for s in range(load(step + step_at.sequences)):
            before, after, first, count = sequence_of(record, step, s)
            for piece in range(begin, end):
                head, column = piece // pieces, piece % pieces * COLUMNS
                columns = min(COLUMNS, value_dim - column)
                if columns == COLUMNS:
                    wide(record, head, column, first, count, before, after)
                else:
                    for c in range(column, column + columns, 16):
                        narrow(record, head, c, first, count, before, after)

    return body


def _columns(simd: Any, delta: bool, vectors: int) -> Any:
    """Make the helper that updates columns of a head's state (4 or 1 ``vectors`` of 16) for all tokens of a sequence.

    It takes (record, head, first column, first row of the tokens, number of tokens, address of the sequence's state
    before the step or 0, address of the state after the step).
    """
    at, load, load_f32 = ScanRecord.at, simd.load_i64, simd.load_f32
    vload, vstore, splat, fma = simd.vload, simd.vstore, simd.splat, simd.fma
    four, row = vectors == 4, 64 * vectors  # row: bytes of a row of the block
    update, update_last = _token(simd, delta, vectors, last=False), _token(simd, delta, vectors, last=True)

    @simd.jit
    def clear(state, rows):
        for i in range(0, rows * row, 64):
            vstore(state + i, splat(0.0))

    @simd.jit
    def predict(k, state, rows):
        """Return Sᵀ k."""
        p0 = p1 = p2 = p3 = splat(0.0)
        for i in range(rows):
            key, here = splat(load_f32(k + 4 * i)), state + i * row
            p0 = fma(vload(here), key, p0)
            if four:
                p1 = fma(vload(here + 64), key, p1)
                p2 = fma(vload(here + 128), key, p2)
                p3 = fma(vload(here + 192), key, p3)
        return p0, p1, p2, p3

    @simd.jit
    def all_tokens(record, head, column, first, count, before, after):
        rows, values = load(record + at.key_dim), 4 * load(record + at.value_dim)
        group = head // load(record + at.neighbours) % load(record + at.groups)
        key_stride, value_stride = load(record + at.key_stride), load(record + at.heads) * values
        within = first * key_stride + group * load(record + at.group_stride)
        skip = load(record + at.skip)
        q, k = load(record + at.q) + within, load(record + at.k) + within
        place = first * value_stride + head * values + 4 * column
        v, out = load(record + at.v) + place, load(record + at.out) + place
        stride = load(record + at.head_stride)
        decays = load(record + at.decays) + first * stride + 4 * head
        factors = load(record + at.factors) + first * stride + 4 * head
        in_state = rows * (head * values + 4 * column)
        source, after = before + in_state, after + in_state
        if before == 0:
            clear(after, rows)
            source = after
        p0 = p1 = p2 = p3 = splat(0.0)
        if delta:
            p0, p1, p2, p3 = predict(k, source, rows)
        for t in range(count):
            a, b = splat(load_f32(decays + t * stride)), splat(load_f32(factors + t * stride))
            here = v + t * value_stride
            u0 = u1 = u2 = u3 = vload(here)
            if four:
                u1, u2, u3 = vload(here + 64), vload(here + 128), vload(here + 192)
            if delta:
                u0 = u0 - p0 * a
                if four:
                    u1, u2, u3 = u1 - p1 * a, u2 - p2 * a, u3 - p3 * a
            key, query = k + t * key_stride, q + t * key_stride
            if t + 1 < count:
                o0, o1, o2, o3, p0, p1, p2, p3 = update(
                    source, after, rows, a, key, query, u0 * b, u1 * b, u2 * b, u3 * b, key + key_stride
                )
            else:
                o0, o1, o2, o3, p0, p1, p2, p3 = update_last(
                    source, after, rows, a, key, query, u0 * b, u1 * b, u2 * b, u3 * b, key
                )
            source = after
            if skip != 0:
                d = splat(load_f32(skip + 4 * head))
                o0 = fma(vload(here), d, o0)
                if four:
                    o1 = fma(vload(here + 64), d, o1)
                    o2 = fma(vload(here + 128), d, o2)
                    o3 = fma(vload(here + 192), d, o3)
            to = out + t * value_stride
            vstore(to, o0)
            if four:
                vstore(to + 64, o1)
                vstore(to + 128, o2)
                vstore(to + 192, o3)

    return all_tokens


def _token(simd: Any, delta: bool, vectors: int, last: bool) -> Any:
    """Make the helper that updates columns of a state for one token: S = a S + k ⊗ u, from ``source`` to ``state``.

    It returns Sᵀ q, and with ``delta`` also Sᵀ k of the following token. The ``last`` token of a step has no following
    token; instead the columns that follow in memory are prefetched, because they are updated next.
    """
    load_f32, vload, vstore, splat, fma = simd.load_f32, simd.vload, simd.vstore, simd.splat, simd.fma
    four, row, prefetch = vectors == 4, 64 * vectors, simd.prefetch

    @simd.jit
    def update(source, state, rows, a, k, q, u0, u1, u2, u3, following):
        o0 = o1 = o2 = o3 = splat(0.0)
        p0 = p1 = p2 = p3 = splat(0.0)
        ahead = source + rows * row
        for i in range(rows):
            key, query = splat(load_f32(k + 4 * i)), splat(load_f32(q + 4 * i))
            old, new = source + i * row, state + i * row
            s0 = fma(u0, key, vload(old) * a)
            vstore(new, s0)
            o0 = fma(s0, query, o0)
            if last:
                prefetch(ahead + i * row)
            elif delta:
                next_key = splat(load_f32(following + 4 * i))
                p0 = fma(s0, next_key, p0)
            if four:
                s1 = fma(u1, key, vload(old + 64) * a)
                s2 = fma(u2, key, vload(old + 128) * a)
                s3 = fma(u3, key, vload(old + 192) * a)
                vstore(new + 64, s1)
                vstore(new + 128, s2)
                vstore(new + 192, s3)
                o1 = fma(s1, query, o1)
                o2 = fma(s2, query, o2)
                o3 = fma(s3, query, o3)
                if last:
                    prefetch(ahead + i * row + 64)
                    prefetch(ahead + i * row + 128)
                    prefetch(ahead + i * row + 192)
                elif delta:
                    p1 = fma(s1, next_key, p1)
                    p2 = fma(s2, next_key, p2)
                    p3 = fma(s3, next_key, p3)
        return o0, o1, o2, o3, p0, p1, p2, p3

    return update


# Depthwise convolution: each column is a weighted sum of the same column in the last J tokens.
#
#     out[t, c] = f(bias[c] + sum over j < J of weight[j, c] * x[t - (J - 1) + j, c])          (T, C) → (T, C)
#
# With ``ahead`` A, the sum is over x[t - (J - 1) + j + A, c], with zeros after the last token: the last A of the J
# tokens are later tokens. With ``ahead``, a sequence must run in one step (LFM2.5's encoders).
#
# f is SiLU (Mamba-2, Gated DeltaNet) or the identity (LFM2). The state is the last J - 1 inputs, (J - 1, C) float32;
# before the first token the state is zeros. The sum runs from the oldest token to the newest, so its bits do not depend
# on the split of a sequence into steps.


class ConvolveRecord(StateRecord):
    """``state`` is (J - 1, C) float32."""

    x: Address  # (T, C) float32
    width: int  # C, a multiple of 16
    taps: int  # J
    weight: Address  # (J, weight_stride / 4) float32
    weight_stride: int  # bytes
    bias: Address  # (C,) float32, or 0: none
    out: Address  # (T, C) float32; not x


def reference(
    x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any] | float = 0.0, silu: bool = False, ahead: int = 0
) -> NDArray[np.float64]:
    """Compute in float64 the convolution of a whole sequence, starting from a state of zeros.

    x (T, C), weight (J, C).
    """
    zeros = np.zeros((len(weight) - 1, x.shape[1]))
    padded = np.concatenate([zeros, x.astype(np.float64), zeros])
    out = bias + sum(padded[j + ahead : j + ahead + len(x)] * row for j, row in enumerate(weight.astype(np.float64)))
    return np.asarray(out / (1 + np.exp(-out)) if silu else out, np.float64)


@kernel("convolve", ConvolveRecord)
def build(simd: Any, silu: bool, ahead: int) -> Any:
    """Build the convolution of a step's sequences. With ``silu``, f is SiLU."""
    at, step_at, load = ConvolveRecord.at, StepRecord.at, simd.load_i64
    vload, vstore, splat, fma = simd.vload, simd.vstore, simd.splat, simd.fma
    sequence_of, sigmoid = state_sequence(simd, at), sigmoid_vector(simd)

    @simd.jit
    def body(record, step, thread, threads):
        x, out, bias = load(record + at.x), load(record + at.out), load(record + at.bias)
        weight, stride = load(record + at.weight), load(record + at.weight_stride)
        row, kept = 4 * load(record + at.width), load(record + at.taps) - 1
        # Columns are divided as in matrix products, so that a thread's input is already in its own CPU cache.
        blocks = (row + 127) // 128
        begin, end = blocks * thread // threads * 128, min(row, blocks * (thread + 1) // threads * 128)
        for s in range(load(step + step_at.sequences)):
            before, after, first, count = sequence_of(record, step, s)
            for t in range(count):
                here = x + (first + t) * row
                for c in range(begin, end, 64):
                    total = splat(0.0)
                    if bias != 0:
                        total = vload(bias + c)
                    for j in range(kept + 1):
                        back = kept - j - ahead
                        if back <= t:
                            if t - back < count:
                                total = fma(vload(here - back * row + c), vload(weight + j * stride + c), total)
                        elif before != 0:
                            old = before + (kept + t - back) * row + c
                            total = fma(vload(old), vload(weight + j * stride + c), total)
                    if silu:
                        total = total * sigmoid(total)
                    vstore(out + (first + t) * row + c, total)
            # The state may be updated in place: each of its rows is read before it is written.
            for j in range(kept):
                token = count - kept + j
                for c in range(begin, end, 64):
                    value = splat(0.0)
                    if token >= 0:
                        value = vload(x + (first + token) * row + c)
                    elif before != 0:
                        value = vload(before + (kept + token) * row + c)
                    vstore(after + j * row + c, value)

    return body
