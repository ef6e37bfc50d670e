"""A plan: the flat list of operations that a model is, over named buffers. Ordinary data.

It can be printed, sliced and rewritten; ``passes.py`` holds the rewrites, ``bind.py`` turns it into the table of
records that the executor runs. Building one touches no weights and compiles nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import KernelKey
from pellucid.runtime.cache import LayerShape

Rows = Literal["tokens", "outputs", "sequences"]
LETTER: Mapping[Rows, str] = {"tokens": "T", "outputs": "R", "sequences": "B"}


Barrier = Literal["none", "rows", "always"]
REPLICATED = "replicated"


@dataclass(frozen=True)
class Buffer:
    """A named array of a step: ``rows`` x ``width``, float32, or activation blocks of ``activation_bits`` 8 or 16."""

    name: str
    width: int
    rows: Rows = "tokens"
    activation_bits: int = 0


@dataclass(frozen=True)
class At:
    """The address of a buffer."""

    buffer: str


@dataclass(frozen=True)
class Weights:
    """The address of a slot's packed matrix."""

    slot: str


@dataclass(frozen=True)
class Vector:
    """The address of a slot's values as float32."""

    slot: str


@dataclass(frozen=True)
class Constant:
    """The address of a small array that the plan brings along (rotary frequencies, zeros)."""

    name: str


@dataclass(frozen=True)
class Cache:
    """The address of a layer's keys or values in page 0."""

    layer: int
    part: Literal["keys", "values"]


@dataclass(frozen=True)
class DistanceBias:
    """The address of what a distance table adds to head 0's score of the token itself."""

    table: str


@dataclass(frozen=True)
class PageBytes:
    """Bytes from one page of the cache to the next."""


Value: TypeAlias = int | float | At | Weights | Vector | Constant | Cache | DistanceBias | PageBytes


@dataclass(frozen=True)
class DistanceTable:
    """What is added to attention scores by the distance of a key: -slope * |distance|, for each head.

    It covers ``past`` distances from 0 backwards and ``future`` ones from 1 forwards.
    """

    slopes: tuple[float, ...]
    past: int
    future: int

    @property
    def columns(self) -> int:
        """Numbers of a head; the attention kernel may read 15 behind the last distance."""
        return self.past + self.future + 15

    def values(self) -> NDArray[np.float32]:
        """(H, columns) float32; distance 0 is in column ``past`` - 1."""
        distances = np.abs(np.arange(self.columns) - (self.past - 1))
        values: NDArray[np.float32] = (-np.outer(self.slopes, distances)).astype(np.float32)
        return values


@dataclass(frozen=True)
class Operation:
    """One operation: which stage of the model it computes, its kernel and its record.

    ``stage`` names the value that it writes, whatever has been fused: "blocks.0.attention.residual" is the residual
    stream after attention in every plan. ``includes`` are earlier stages that it computes on the way, whose values are
    not in memory.

    ``reads`` and ``writes`` name buffers, and "cache.3" for a layer's pages; the barriers follow from them.
    ``weight_bytes`` is what it reads of the weights in a step, ``multiply_adds`` what it computes for a row.
    """

    stage: str
    kernel: KernelKey
    fields: Mapping[str, Value]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    shape: str = ""
    weight_bytes: int = 0
    multiply_adds: int = 0
    rows: Rows = "tokens"
    shares: Mapping[str, str] = field(default_factory=dict)
    """How threads divide the buffers of which each touches its own part only: operations that divide a buffer in the
    same way need not wait for each other. ``REPLICATED``: in a step of one row each thread has a copy, row t is thread
    t's; it says nothing about steps of several rows."""
    includes: tuple[str, ...] = ()
    barrier: Barrier = "none"
    """Whether all threads must meet before the next operation: always, or only if there is more than one row."""

    @property
    def label(self) -> str:
        """The stage with those that it includes, for a person: "blocks.0.attention.output+residual"."""
        *_, last = self.stage.rpartition(".")
        return "+".join([*self.includes, last]) if self.includes else self.stage

    def with_fields(self, **fields: Value) -> Operation:
        """The same operation with some fields of its record changed."""
        return replace(self, fields={**self.fields, **fields})


@dataclass(frozen=True, repr=False)
class Plan:
    """Operations in order, the buffers they use, and the constants that come along.

    ``output`` is the buffer that a step is run for: logits (R, V), or sentence vectors (B, D). ``layers`` is what the
    cache keeps of each layer.
    """

    operations: tuple[Operation, ...]
    buffers: Mapping[str, Buffer]
    constants: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    output: str = ""
    layers: tuple[LayerShape, ...] = ()
    tables: Mapping[str, DistanceTable] = field(default_factory=dict)

    def kernels(self) -> list[KernelKey]:
        """The kernels that it needs, each once."""
        return list(dict.fromkeys(op.kernel for op in self.operations))

    def __repr__(self) -> str:
        return (
            f"Plan({len(self.operations)} operations, {len(self.buffers)} buffers, {len(self.layers)} cached layers, "
            f"output {self.output!r})"
        )
