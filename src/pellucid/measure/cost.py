"""How much a step must read and multiply at least, whoever runs it: what the roofs are compared with.

Weights are read once a step, keys and values once for each sequence that makes a token. Products are those with
weights, for the rows that are there, each counted once, however many products of 8 bits it is made of. Attention over
many tokens is bound by products of its own, which are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pellucid.engine.model_runner import ModelRunner
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.kernels.matmul.packed_layout import PackedLayout
from pellucid.plan.plan import Operation
from pellucid.runtime.batch import Chunk


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second: bytes read, int8 multiply-adds."""

    read: float
    multiply: float


@dataclass(frozen=True)
class Cost:
    """Bytes to be read; multiply-adds with integer weights. Products with floating point weights have no roof here."""

    nbytes: int = 0
    multiply_adds: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.nbytes + other.nbytes, self.multiply_adds + other.multiply_adds)

    def seconds(self, rates: Rates) -> float:
        """The least time that it takes: reading and multiplying may overlap, so the longer of both."""
        return max(self.nbytes / rates.read, self.multiply_adds / rates.multiply)

    def bound(self, rates: Rates) -> str:
        """Which of both takes longer: "memory" or "int8"."""
        return "int8" if self.multiply_adds / rates.multiply > self.nbytes / rates.read else "memory"


def total(costs: Iterable[Cost]) -> Cost:
    """The sum."""
    return sum(costs, Cost())


def step_cost(runner: ModelRunner, chunks: Sequence[Chunk]) -> Cost:
    """Of a whole step. Only the lengths of the chunks and of their sequences matter."""
    return total(operation_cost(runner, op, chunks) for op in runner.plan.operations)


def operation_cost(runner: ModelRunner, op: Operation, chunks: Sequence[Chunk]) -> Cost:
    """Of one operation in a step."""
    counts = {
        "tokens": sum(len(chunk.tokens) for chunk in chunks),
        "outputs": sum(chunk.outputs for chunk in chunks),
        "sequences": len(chunks),
    }
    rows = counts[op.rows]
    integers = any(isinstance(p, PackedLayout) and not p.is_float for _, p in op.kernel.parameters)
    return Cost(
        (op.weight_bytes if rows else 0) + _cached_bytes(runner, op, chunks),
        op.multiply_adds * rows if integers else 0,
    )


def _cached_bytes(runner: ModelRunner, op: Operation, chunks: Sequence[Chunk]) -> int:
    """The keys and values that an operation reads for single tokens."""
    lengths = [chunk.table.length + 1 for chunk in chunks if len(chunk.tokens) == 1]
    nbytes = 0
    for layer in (int(name[6:]) for name in op.reads if name.startswith("cache.")):
        window = int(op.fields["window"])  # type: ignore[arg-type]
        per_token = runner.cache.layers[layer].page_bytes // PAGE
        nbytes += per_token * sum(min(length, window or length) for length in lengths)
    return nbytes
