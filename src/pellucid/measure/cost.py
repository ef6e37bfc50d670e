"""The least that a step must read and multiply, whatever the implementation. Divided by the roofs, it gives a time.

Weights are read once per step, keys and values once for each sequence that decodes a token. Multiply-adds are those
with weights, for the rows of the step, each counted once, however many 8-bit products it is made of. Attention over
many tokens is bound by its own products, which are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pellucid.engine.model_runner import ModelRunner
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.kernels.matmul.packed_layout import PackedLayout
from pellucid.plan.plan import Operation
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache_layout import StateShape


@dataclass(frozen=True)
class Rates:
    """The rates of a machine: bytes read and int8 multiply-adds per second."""

    read: float
    multiply: float


@dataclass(frozen=True)
class Cost:
    """Bytes to read, and multiply-adds with integer weights. Products with floating point weights have no roof here."""

    nbytes: int = 0
    multiply_adds: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.nbytes + other.nbytes, self.multiply_adds + other.multiply_adds)

    def seconds(self, rates: Rates) -> float:
        """The least time that it takes: reading and multiplying may overlap, so the longer of the two."""
        return max(self.nbytes / rates.read, self.multiply_adds / rates.multiply)

    def bound(self, rates: Rates) -> str:
        """Which of the two takes longer: "memory" or "int8"."""
        return "int8" if self.multiply_adds / rates.multiply > self.nbytes / rates.read else "memory"


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of costs."""
    return sum(costs, Cost())


def step_cost(runner: ModelRunner, chunks: Sequence[Chunk]) -> Cost:
    """The cost of a whole step. It depends only on the lengths of the chunks and of their sequences."""
    return total(operation_cost(runner, op, chunks) for op in runner.plan.operations)


def operation_cost(runner: ModelRunner, op: Operation, chunks: Sequence[Chunk]) -> Cost:
    """The cost of one operation in a step."""
    counts = {
        "tokens": sum(len(chunk.tokens) for chunk in chunks),
        "outputs": sum(chunk.outputs for chunk in chunks),
        "sequences": len(chunks),
    }
    rows = counts[op.rows]
    integers = any(isinstance(p, PackedLayout) and not p.is_float for _, p in op.kernel.parameters)
    return Cost(
        weight_bytes(op, rows) + _cached_bytes(runner, op, chunks),
        op.multiply_adds * rows if integers else 0,
    )


def weight_bytes(op: Operation, rows: int) -> int:
    """The bytes of weights that a step of so many rows reads.

    Of a mixture it reads each expert that some token has chosen: as many as can be expected of tokens that choose
    independently.
    """
    if not rows or not op.kernel.name.startswith("matmul_experts"):
        return op.weight_bytes if rows else 0
    experts, expert_bytes = int(op.fields["experts"]), int(op.fields["expert_bytes"])  # type: ignore[arg-type]
    missed = (1 - op.weight_bytes / expert_bytes / experts) ** rows
    return round(experts * (1 - missed) * expert_bytes)


def _cached_bytes(runner: ModelRunner, op: Operation, chunks: Sequence[Chunk]) -> int:
    """The bytes of keys and values that an operation reads for chunks of one token; of states, read and written."""
    lengths = [chunk.table.length + 1 for chunk in chunks if len(chunk.tokens) == 1]
    nbytes = 0
    for name in (name for name in op.reads if name.startswith("cache.")):
        _, layer, *part = name.split(".")
        shape = runner.cache.layers[int(layer)]
        if isinstance(shape, StateShape):
            nbytes += 2 * 4 * dict(shape.parts)[part[0]] * len(chunks)
        else:
            nbytes += shape.page_bytes // PAGE * sum(map(shape.seen, lengths))
    return nbytes
