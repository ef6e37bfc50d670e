"""Mixtures of experts: each token's choice of experts, the grouping of tokens by expert, the sum of the results.

route    scores of E experts -> the chosen experts, best first, and their weights        (T, E) -> (T, C), (T, C)
group    lists the (token, choice) pairs by expert, in the order of the tokens           (T, C) -> (T * C,), (E + 1,)
weigh    multiplies each row of a buffer by its choice's weight                          (T * C, N), in place
combine  the weighted sum of a token's results, in the order of its choices, plus the shared expert's result,
         plus a bias                                                                       (T * C, D) -> (T, D)

(Shazeer et al. 2017; groups of experts and the correction of the choice: DeepSeek-AI 2024, DeepSeek-V3.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Count, Record
from pellucid.kernels.matmul.product import partition
from pellucid.kernels.ops.elementwise import sigmoid_vector

LOWEST = -3e38  # replaces a score that is not a number
TAKEN = -np.inf


class ChoicesRecord(Record):
    """Fields of operations on each token's choices."""

    chosen: int  # C
    choice_stride: int  # bytes from one token's ids, weights or places to the next
    rows: Count


class RouteRecord(ChoicesRecord):
    scores: Address  # (T, E) float32; afterwards the probabilities
    experts: int  # E
    stride: int  # bytes from one token's scores to the next
    keys: Address  # (T, E + groups) float32 work space: the numbers that the choice compares
    keys_stride: int  # bytes
    correction: Address  # (E,) float32, added only for the choice; or 0
    groups: int  # number of groups of experts
    kept: int  # number of groups that a token may choose experts from
    normalize: int  # 1: a token's weights are divided by their sum
    factor: float  # of the weights
    factors: Address  # (E,) float32, of each expert's weight; or 0
    ids: Address  # (T, C) int32
    weights: Address  # (T, C) float32


class GroupRecord(ChoicesRecord):
    ids: Address  # (T, C) int32
    experts: int  # E
    runs: Address  # (E + 1,) int32: first row of each expert, then T * C
    sources: Address  # (T * C,) int32: the token of each row
    places: Address  # (T, C) int32: the row of each choice


class WeighRecord(ChoicesRecord):
    x: Address  # (T * C, N) float32
    width: int  # N, a multiple of 16
    places: Address  # (T, C) int32
    weights: Address  # (T, C) float32


class CombineRecord(ChoicesRecord):
    results: Address  # (T * C, D) float32
    width: int  # D, a multiple of 16
    places: Address  # (T, C) int32
    weights: Address  # (T, C) float32; or 0: all are 1
    shared: Address  # (T, D) float32: the result of the shared expert, or 0
    gate: Address  # (T, 16) float32: sigmoid of column 0 is the weight of ``shared``; or 0: the weight is 1
    bias: Address  # (D,) float32, added to each sum; or 0
    out: Address  # (T, D) float32


def route_reference(
    scores: NDArray[Any],
    kind: str,
    chosen: int,
    normalize: bool = False,
    factor: float = 1.0,
    correction: NDArray[Any] | float = 0.0,
    groups: int = 1,
    kept: int = 1,
    group_best: int = 1,
    factors: NDArray[Any] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Compute the ids and weights of (T, E) scores in float64."""
    x = scores.astype(np.float64)
    if kind == "softmax":
        x = np.exp(x - x.max(-1, keepdims=True))
        x /= x.sum(-1, keepdims=True)
    else:
        small = np.exp(-np.abs(x))  # at most 1, so nothing overflows
        x = np.where(x >= 0, 1, small) / (1 + small)
    keys = x + correction
    if groups > 1:
        inside = np.sort(keys.reshape(len(x), groups, -1), -1)[..., -group_best:].sum(-1)
        best = np.argsort(-inside, axis=-1, kind="stable")[:, :kept]
        keep = np.zeros((len(x), groups), bool)
        np.put_along_axis(keep, best, True, -1)
        keys = np.where(np.repeat(keep, x.shape[1] // groups, 1), keys, -np.inf)
    ids = np.argsort(-keys, axis=-1, kind="stable")[:, :chosen]
    weights = np.take_along_axis(x, ids, -1)
    if normalize:
        weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
    return ids, weights * (factor if factors is None else factor * factors.astype(np.float64)[ids])


def _probabilities(simd: Any, kind: str) -> Any:
    """Make the helper that turns E scores into probabilities, in place."""
    vload, vstore, splat, vexp = simd.vload, simd.vstore, simd.splat, simd.vexp
    load, store, of_vector = simd.load_f32, simd.store_f32, sigmoid_vector(simd)

    @simd.jit
    def softmax(scores, experts):
        top = np.float32(LOWEST)
        for i in range(experts):
            top = max(top, load(scores + 4 * i))
        for i in range(0, 4 * experts, 64):
            vstore(scores + i, vexp(vload(scores + i) - splat(top)))
        total = np.float32(0)
        for i in range(experts):  # in order, and without the lanes after E
            total += load(scores + 4 * i)
        inverse = np.float32(1) / total
        for i in range(experts):
            store(scores + 4 * i, load(scores + 4 * i) * inverse)

    @simd.jit
    def sigmoid(scores, experts):
        for i in range(0, 4 * experts, 64):
            vstore(scores + i, of_vector(vload(scores + i)))

    return {"softmax": softmax, "sigmoid": sigmoid}[kind]


def _keep_groups(simd: Any, best: int) -> Any:
    """Make the helper that excludes experts outside the best groups. A better group has a larger sum of best keys."""
    load, store = simd.load_f32, simd.store_f32

    @simd.jit
    def value(keys, size):
        first = second = np.float32(TAKEN)
        for i in range(size):
            key = load(keys + 4 * i)
            if key > first:
                first, second = key, first
            elif key > second:
                second = key
        return first + second if best == 2 and size > 1 else first

    @simd.jit
    def keep(keys, experts, groups, kept):
        size = experts // groups
        for group in range(groups):
            group_value, better = value(keys + 4 * size * group, size), 0
            for other in range(groups):
                other_value = value(keys + 4 * size * other, size)
                if other_value > group_value or (other_value == group_value and other < group):
                    better += 1
            if better >= kept:  # only marked: the other groups are still compared with this group
                store(keys + 4 * (experts + group), np.float32(1))
            else:
                store(keys + 4 * (experts + group), np.float32(0))
        for group in range(groups):
            if load(keys + 4 * (experts + group)) != 0:
                for i in range(size * group, size * group + size):
                    store(keys + 4 * i, np.float32(TAKEN))

    return keep


@kernel("route", RouteRecord)
def build_route(simd: Any, kind: str, group_best: int) -> Any:
    """Build the router. ``kind`` is "softmax" or "sigmoid".

    The keys are the scores plus the correction. Groups are ranked by the sum of their ``group_best`` (1 or 2) best
    keys. A row of ``keys`` has room for one number per group after the experts' numbers.
    """
    at, word, load, store = RouteRecord.at, simd.load_i64, simd.load_f32, simd.store_f32
    load_i32, store_i32 = simd.load_i32, simd.store_i32
    probabilities, keep = _probabilities(simd, kind), _keep_groups(simd, group_best)

    @simd.jit
    def body(record, step, thread, threads):
        experts, chosen = word(record + at.experts), word(record + at.chosen)
        groups = word(record + at.groups)
        stride, choice_stride = word(record + at.stride), word(record + at.choice_stride)
        correction, factors = word(record + at.correction), word(record + at.factors)
        factor = np.float32(simd.load_f64(record + at.factor))
        rows = word(step + word(record + at.rows))
        for row in range(*simd.thread_range(rows, thread, threads)):
            scores = word(record + at.scores) + row * stride
            keys = word(record + at.keys) + row * word(record + at.keys_stride)
            ids = word(record + at.ids) + row * choice_stride
            weights = word(record + at.weights) + row * choice_stride
            probabilities(scores, experts)
            for i in range(experts):
                key = load(scores + 4 * i)
                if correction != 0:
                    key += load(correction + 4 * i)
                store(keys + 4 * i, key if key > np.float32(LOWEST) else np.float32(LOWEST))
            if groups > 1:
                keep(keys, experts, groups, word(record + at.kept))
            total = np.float32(0)
            for choice in range(chosen):
                best, top = 0, np.float32(TAKEN)
                for i in range(experts):
                    key = load(keys + 4 * i)
                    if key > top:
                        best, top = i, key
                store(keys + 4 * best, np.float32(TAKEN))
                store_i32(ids + 4 * choice, best)
                weight = load(scores + 4 * best)
                store(weights + 4 * choice, weight)
                total += weight
            if word(record + at.normalize) == 0:
                total = np.float32(1)
            for choice in range(chosen):
                store(weights + 4 * choice, load(weights + 4 * choice) * (factor / (total + np.float32(1e-20))))
                if factors != 0:
                    expert_factor = load(factors + 4 * load_i32(ids + 4 * choice))
                    store(weights + 4 * choice, load(weights + 4 * choice) * expert_factor)

    return body


@kernel("group", GroupRecord)
def build_group(simd: Any) -> Any:
    at, load, load_i32, store = GroupRecord.at, simd.load_i64, simd.load_i32, simd.store_i32

    @simd.jit
    def body(record, step, thread, threads):
        if thread == 0:
            ids, places = load(record + at.ids), load(record + at.places)
            stride = load(record + at.choice_stride)
            runs, sources = load(record + at.runs), load(record + at.sources)
            experts, chosen = load(record + at.experts), load(record + at.chosen)
            rows = load(step + load(record + at.rows))
            for expert in range(experts + 1):
                store(runs + 4 * expert, 0)
            for row in range(rows):
                for choice in range(chosen):
                    next_run = runs + 4 * load_i32(ids + row * stride + 4 * choice) + 4
                    store(next_run, load_i32(next_run) + 1)
            for expert in range(experts):
                store(runs + 4 * expert + 4, load_i32(runs + 4 * expert + 4) + load_i32(runs + 4 * expert))
            for row in range(rows):
                for choice in range(chosen):
                    run = runs + 4 * load_i32(ids + row * stride + 4 * choice)
                    place = load_i32(run)
                    store(run, place + 1)
                    store(places + row * stride + 4 * choice, place)
                    store(sources + 4 * place, row)
            # The entry of each expert now holds the start of the next expert's run: move the entries back.
            for expert in range(experts, 0, -1):
                store(runs + 4 * expert, load_i32(runs + 4 * expert - 4))
            store(runs, 0)

    return body


@kernel("weigh", WeighRecord)
def build_weigh(simd: Any) -> Any:
    at, load, load_i32, load_f32 = WeighRecord.at, simd.load_i64, simd.load_i32, simd.load_f32
    vload, vstore, splat = simd.vload, simd.vstore, simd.splat

    @simd.jit
    def body(record, step, thread, threads):
        width, chosen = 4 * load(record + at.width), load(record + at.chosen)
        stride = load(record + at.choice_stride)
        pairs = load(step + load(record + at.rows)) * chosen
        for pair in range(*simd.thread_range(pairs, thread, threads)):
            choice = pair // chosen * stride + 4 * (pair % chosen)
            row = load(record + at.x) + load_i32(load(record + at.places) + choice) * width
            weight = splat(load_f32(load(record + at.weights) + choice))
            for i in range(0, width, 64):
                vstore(row + i, vload(row + i) * weight)

    return body


@kernel("combine", CombineRecord)
def build_combine(simd: Any) -> Any:
    at, load, load_i32, load_f32 = CombineRecord.at, simd.load_i64, simd.load_i32, simd.load_f32
    vload, vstore, splat, fma = simd.vload, simd.vstore, simd.splat, simd.fma
    sigmoid, part = sigmoid_vector(simd), partition(simd)

    @simd.jit
    def body(record, step, thread, threads):
        results, shared = load(record + at.results), load(record + at.shared)
        gate, bias, out = load(record + at.gate), load(record + at.bias), load(record + at.out)
        columns, chosen = load(record + at.width), load(record + at.chosen)
        stride = load(record + at.choice_stride)
        rows, width = load(step + load(record + at.rows)), 4 * columns
        first, last, first_row, last_row = part(columns, rows, thread, threads)
        for row in range(first_row, last_row):
            places, weights = load(record + at.places) + row * stride, load(record + at.weights)
            weighted = weights != 0
            weights += row * stride
            of_shared = splat(1.0)
            if gate != 0:
                of_shared = sigmoid(splat(load_f32(gate + 64 * row)))
            for i in range(4 * first, 4 * last, 64):
                total = splat(0.0)
                if shared != 0:
                    total = vload(shared + row * width + i) * of_shared
                if bias != 0:
                    total = total + vload(bias + i)
                for choice in range(chosen):
                    result = results + load_i32(places + 4 * choice) * width + i
                    weight = np.float32(1)
                    if weighted:
                        weight = load_f32(weights + 4 * choice)
                    total = fma(vload(result), splat(weight), total)
                vstore(out + row * width + i, total)

    return body
