"""Lower bounds for the memory traffic (bytes) and the compute (multiply-adds) of a step, as in the roofline model.

Any implementation needs at least these bytes and multiply-adds. Their quotients by `Rates`, the peak rates of the
machine, are minimum times.

Bytes are the weights, read once per step, and the keys and values of each sequence that decodes a token, read once.
Multiply-adds are the products of all rows of the step with the weights. A product counts once, even if it takes several
8-bit products. The products of attention, which limit the speed over many tokens, are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pellucid.engine.model_runner import ModelRunner
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.kernels.matmul.layouts import PackedLayout
from pellucid.plan.plan import Operation, Plan
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache_layout import CachedLayer, LayerShape, StateShape


@dataclass(frozen=True)
class Rates:
    """The peak rates of a machine: bytes read and int8 multiply-adds per second."""

    read: float
    multiply: float


@dataclass(frozen=True)
class Cost:
    """Bytes to read, and multiply-adds with integer weights. `Rates` has no rate for products with float weights."""

    nbytes: int = 0
    multiply_adds: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.nbytes + other.nbytes, self.multiply_adds + other.multiply_adds)

    def seconds(self, rates: Rates) -> float:
        """The minimum time in seconds: the longer of the times to read and to multiply, because both may overlap."""
        return max(self.nbytes / rates.read, self.multiply_adds / rates.multiply)

    def bound(self, rates: Rates) -> str:
        return "int8" if self.multiply_adds / rates.multiply > self.nbytes / rates.read else "memory"


def total(costs: Iterable[Cost]) -> Cost:
    return sum(costs, Cost())


def step_cost(runner: ModelRunner, chunks: Sequence[Chunk]) -> Cost:
    """The cost of a whole step. It depends only on the lengths of the chunks and of their sequences."""
    return total(operation_cost(runner, op, chunks) for op in runner.plan.operations)


def operation_cost(runner: ModelRunner, op: Operation, chunks: Sequence[Chunk]) -> Cost:
    counts = {
        "tokens": sum(len(chunk.tokens) for chunk in chunks),
        "outputs": sum(chunk.outputs for chunk in chunks),
        "sequences": len(chunks),
    }
    rows = counts[op.rows]
    integers = any(isinstance(p, PackedLayout) and not p.is_float for _, p in op.kernel.parameters)
    return Cost(weight_bytes(op, rows) + _cached_bytes(runner, op, chunks), op.multiply_adds * rows if integers else 0)


def weight_bytes(op: Operation, rows: int) -> int:
    """The bytes of weights that a step of ``rows`` rows reads.

    In a mixture, a step reads each expert that any token has chosen. The result assumes that tokens choose
    independently, and uses the expected number of chosen experts.
    """
    if not rows or not op.kernel.name.startswith("matmul_experts"):
        return op.weight_bytes if rows else 0
    experts, expert_bytes = int(op.fields["experts"]), int(op.fields["expert_bytes"])  # type: ignore[arg-type]
    missed = (1 - op.weight_bytes / expert_bytes / experts) ** rows
    return round(experts * (1 - missed) * expert_bytes)


def _cached_bytes(runner: ModelRunner, op: Operation, chunks: Sequence[Chunk]) -> int:
    """The bytes of the cache that an operation reads and writes.

    Keys and values are read for chunks of one token. States are read and written for every chunk.
    """
    lengths = [chunk.table.length + 1 for chunk in chunks if len(chunk.tokens) == 1]
    nbytes = 0
    for shape, part in _parts_read(op, runner.cache.kv.layers):
        if isinstance(shape, StateShape):
            nbytes += _state_bytes(shape, part) * len(chunks)
        else:
            nbytes += token_bytes(shape) * sum(map(shape.seen, lengths))
    return nbytes


def _parts_read(op: Operation, layers: Sequence[CachedLayer]) -> Iterator[tuple[CachedLayer, str]]:
    """The cached layers that an operation reads, each with the part of its state ("" for keys and values)."""
    for name in op.reads:
        if name.startswith("cache."):
            _, layer, *part = name.split(".")
            yield layers[int(layer)], "".join(part)


def _state_bytes(shape: StateShape, part: str) -> int:
    return 2 * 4 * dict(shape.parts)[part]


def token_bytes(shape: LayerShape) -> int:
    return shape.page_bytes // PAGE


def kv_bytes(layers: Iterable[CachedLayer], tokens: int) -> int:
    """The bytes of keys and values of a sequence of ``tokens`` tokens. Layers with a window keep only the window."""
    kv_layers = (layer for layer in layers if isinstance(layer, LayerShape))
    return sum(token_bytes(layer) * min(layer.window or tokens, tokens) for layer in kv_layers)


@dataclass(frozen=True)
class AttentionCost:
    """The cost of attention for one query and one visible key, summed over all layers with the same ``window``.

    ``window`` 0 is full attention. Decode reads ``nbytes`` of keys and values. Prefill computes ``multiply_adds``,
    counted as 8-bit products.
    """

    window: int
    nbytes: int
    multiply_adds: int


def attention_costs(plan: Plan) -> list[AttentionCost]:
    """The costs of a plan's attention, one for each window. Layers that share keys with another layer count too."""
    by_window: dict[int, AttentionCost] = {}
    for op in plan.operations:
        for shape, _ in _parts_read(op, plan.layers):
            if isinstance(shape, LayerShape):
                before = by_window.get(shape.window, AttentionCost(shape.window, 0, 0))
                heads = int(op.fields["heads"])  # type: ignore[arg-type]
                multiply_adds = heads * (shape.head_dim + shape.value_dim)
                by_window[shape.window] = AttentionCost(
                    shape.window, before.nbytes + token_bytes(shape), before.multiply_adds + multiply_adds
                )
    return list(by_window.values())


def state_bytes(plan: Plan) -> int:
    parts = (part for op in plan.operations for part in _parts_read(op, plan.layers))
    return sum(_state_bytes(shape, part) for shape, part in parts if isinstance(shape, StateShape))
