"""The parts that vector-Jacobian products share: the values that they read, and the numbers of fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.plan.plan import Fill, Operation, Plan, Vector
from pellucid.trace.traced_model import ModelWeights

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
    gradients: Mapping[str, Rows] = {}
    """The gradients of all written buffers that have one, by buffer."""

    def longer_than(self, tokens: int) -> NDArray[np.int64]:
        """For each row, 1 if its sequence has more than ``tokens`` tokens, else 0. With 0 ``tokens`` all are 0."""
        sizes = [own.stop - own.start for own in self.sequences]
        return np.repeat([int(0 < tokens < size) for size in sizes], sizes)

    @property
    def positions(self) -> NDArray[np.int64]:
        """The position of each row."""
        return np.concatenate([np.arange(own.stop - own.start) for own in self.sequences])


Product = Callable[[Operation, Rows, Values], Iterator[tuple[str, Rows]]]
"""Yields the names of fields, each with the gradient of the buffer that the field names."""


class KernelProduct(Struct, frozen=True):
    """A product, and the fields of the buffers that get a gradient (``passes``).

    It reads the values of ``inputs`` before the operation, and of ``outputs`` after it, and the ``choices`` of experts.

    Attention reads its ``patterns``, and has also the fields "k" and "v": keys and values in the cache.
    """

    product: Product
    passes: tuple[str, ...] = ("x",)
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    patterns: bool = False
    choices: bool = False


def vector_of(weights: ModelWeights, value: Any, count: int) -> NDArray[np.float64]:
    """A vector of ``count`` numbers that a field names."""
    if isinstance(value, Fill):
        return np.full(count, value.number)
    assert isinstance(value, Vector)
    return weights.values(value.slot).astype(np.float64).reshape(-1)[:count]


def number_of(op: Operation, name: str) -> float:
    value = op.fields[name]
    assert isinstance(value, (int, float))
    return float(value)


def size_of(op: Operation, name: str) -> int:
    return int(number_of(op, name))
