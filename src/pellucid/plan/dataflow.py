"""The dataflow of a plan: the operation that computes each hook point, and the points whose values it reads.

The graph is derived from the reads and writes of the plan before the passes. Operations without a point of their own
(``quantize``, ``cache_write``, ``pick``, copies of heads) are passed through: the inputs of a point are the nearest
points before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from msgspec import Struct
from msgspec.structs import asdict, replace

from pellucid.kernels.core.definitions import KernelKey
from pellucid.plan.plan import At, Cache, Operation, Plan, block_of
from pellucid.plan.points import Point

STREAM = "residual"
"""The name of the residual stream in a block."""
Names: TypeAlias = tuple[str, ...]


class PointSource(Struct, frozen=True):
    """The operation that computes a point. ``inputs`` are the points that it reads, in the order of its record.

    ``kernel`` is the kernel after the passes, ``stage`` the name of the operation. ``bytes`` are the bytes of weights
    that a step reads, ``multiply_adds`` the multiply-adds per row. ``kernel`` and ``shape`` are "" if no operation
    computes the value: it has the value of its input, or is the softmax of it (probabilities). Scores and patterns have
    the kernel of their attention; its cost is counted at the heads' outputs.
    """

    name: str
    kernel: str
    shape: str
    bytes: int
    multiply_adds: int
    inputs: Names
    stage: str


class Dataflow(Struct, frozen=True):
    """The graph of a plan's points, with equal blocks described once.

    ``kinds`` are the points of the different blocks, with names relative to the block ("attention.q"). ``blocks`` is
    the index of each block's kind. ``rest`` are the points outside the blocks. An input outside of its block is
    "^residual" for the residual stream before the block, "^^NAME" for another point NAME of the previous block, and
    "^NAME" for the point NAME of the plan: "^position.angles". ``stream`` is the residual stream before block 0.
    """

    kinds: tuple[tuple[PointSource, ...], ...]
    blocks: tuple[int, ...]
    rest: tuple[PointSource, ...]
    stream: str

    def as_dict(self) -> dict[str, Any]:
        """The graph as JSON values. A ``stage`` is left out if it is the name of the point."""
        return {
            "kinds": [{"points": list(map(_document, kind))} for kind in self.kinds],
            "blocks": list(self.blocks),
            "rest": list(map(_document, self.rest)),
            "stream": self.stream,
        }


def _document(source: PointSource) -> dict[str, Any]:
    fields = asdict(source) | {"inputs": list(source.inputs)}
    if source.stage == source.name:
        del fields["stage"]
    return fields


def dataflow(plan: Plan) -> Dataflow:
    """The dataflow of a plan, optimized or not."""
    sources, stream = point_sources(plan)
    kinds: dict[tuple[PointSource, ...], int] = {}
    blocks: dict[int, list[PointSource]] = {}
    rest = []
    for source in sources.values():
        if (layer := block_of(source.name)) is None:
            rest.append(source)
        else:
            blocks.setdefault(layer, []).append(_relative(source, layer, stream))
    numbers = [kinds.setdefault(tuple(blocks[layer]), len(kinds)) for layer in sorted(blocks)]
    return Dataflow(tuple(kinds), tuple(numbers), tuple(rest), stream)


def point_sources(plan: Plan) -> tuple[Mapping[str, PointSource], str]:
    """The source of each point by its name, in the order of the pipeline, and the residual stream before block 0."""
    trail = _Trail(plan)
    operations = (plan.source or plan).operations
    residual = plan.points.get(f"blocks.0.{STREAM}")
    buffer = operations[residual.operation].writes[residual.write] if residual else ""
    stream = ""
    for index, op in enumerate(operations):
        if not stream and block_of(op.stage) is not None:
            stream = (*trail.values.get(buffer, ()), "")[0]
        trail.follow(index, op)
    return {name: trail.sources[name] for name in plan.points}, stream


class _Trail:
    """The points that hold the values of buffers, while the operations of a plan are followed in order."""

    def __init__(self, plan: Plan) -> None:
        self.sources: dict[str, PointSource] = {}
        self.values: dict[Any, Names] = {}  # by buffer, or by part of the cache
        self._products: dict[str, Operation] = {}  # products without a point, by the buffer that they write
        self._kernels = _kernels(plan)
        self._points: dict[int, list[Point]] = {}
        for point in plan.points.values():
            self._points.setdefault(point.operation, []).append(point)

    def follow(self, index: int, op: Operation) -> None:
        """Add the points of an operation, and note what it writes."""
        points = self._points.get(index, [])
        product = next((self._products[name] for name in op.reads if name in self._products), op)
        main = op if op.multiply_adds else product
        last: dict[int, Point] = {}
        for point in points:
            before = last.get(point.write)
            if point.kind == "state":
                before = None
            else:
                last[point.write] = point
            inputs = self._inputs(point, op, before)
            self.sources[point.name] = self._source(point, main, inputs, before)
        self._write(op, [point.name for point in last.values()], {n: point.name for n, point in last.items()})
        for name in op.writes:
            self._products.pop(name, None)
            if not points and main.multiply_adds:
                self._products[name] = main

    def _inputs(self, point: Point, op: Operation, before: Point | None) -> Names:
        """The inputs of a point. ``before`` is the point before it of the same operation and buffer."""
        if point.kind == "scores":
            q = op.fields["q"]
            return self._read([q.buffer if isinstance(q, At) else q, op.fields["keys"]])
        if before is None:
            return self._read(op.reads)
        return (before.name, *(self._read([op.fields["values"]]) if before.kind == "pattern" else ()))

    def _source(self, point: Point, main: Operation, inputs: Names, before: Point | None) -> PointSource:
        kernel = str(self._kernels.get(main.stage, main.kernel))
        if point.kind in ("scores", "pattern"):
            return PointSource(point.name, kernel, "", 0, 0, inputs, main.stage)
        if before is not None and before.kind != "pattern":
            return PointSource(point.name, "", "", 0, 0, inputs, point.name)
        return PointSource(point.name, kernel, main.shape, main.weight_bytes, main.multiply_adds, inputs, main.stage)

    def _write(self, op: Operation, names: list[str], by_write: Mapping[int, str]) -> None:
        """Note the points that an operation's buffers hold: its own points ``names``, or the points that it reads."""
        inputs = self._read(op.reads)
        for write, name in enumerate(op.writes):
            if names:
                self.values[name] = (by_write[write],) if write in by_write else tuple(names)
            elif op.fields.get("offset"):  # the columns before the copy remain
                self.values[name] = _once(*self.values.get(name, ()), *inputs)
            else:
                self.values[name] = inputs
        for part, own in (("keys", "k"), ("values", "v")):
            cache, value = op.fields.get(part), op.fields.get(own)
            if isinstance(cache, Cache) and isinstance(value, At):
                self.values[cache] = self.values.get(value.buffer, ())

    def _read(self, places: Iterable[Any]) -> Names:
        return _once(*(point for place in places for point in self.values.get(place, ())))


def _once(*names: str) -> Names:
    return tuple(dict.fromkeys(names))


def _kernels(plan: Plan) -> Mapping[str, KernelKey]:
    """The kernels after the passes, by stage. A sum that is fused into a matrix product keeps its own kernel."""
    kernels = {}
    for op in plan.operations:
        if not op.includes:
            kernels[op.stage] = op.kernel
        for stage in op.includes:
            kernels[stage] = op.kernel
    return kernels


def _relative(source: PointSource, layer: int, stream: str) -> PointSource:
    """A source of block ``layer`` with names relative to the block."""
    own, previous = f"blocks.{layer}.", f"blocks.{layer - 1}."
    before = f"{previous}{STREAM}" if layer else stream

    def relative(name: str) -> str:
        if name.startswith(own):
            return name.removeprefix(own)
        if name == before:
            return f"^{STREAM}"
        return f"^^{name.removeprefix(previous)}" if name.startswith(previous) else f"^{name}"

    return replace(
        source,
        name=source.name.removeprefix(own),
        stage=source.stage.removeprefix(own),
        inputs=tuple(map(relative, source.inputs)),
    )
