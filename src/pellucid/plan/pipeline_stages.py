"""Pipeline stages: cuts a plan between blocks into parts that run one after the other on several machines.

A stage receives the buffers that it reads before it writes them. Some operations before the blocks read no buffer, for
example the computation of rotary angles. A stage repeats these operations if it needs their output.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise

from msgspec import Struct
from msgspec.structs import replace

from pellucid.errors import InvalidRequest
from pellucid.plan.passes import optimize
from pellucid.plan.plan import Operation, Plan, block_of

CACHE = "cache."

PART = 128
"""Number of tokens of a part of a long step. Different stages work on different parts at the same time."""


class Border(Struct, frozen=True):
    """A buffer that a stage sends to the next stage, with a row of ``width`` values for each token."""

    name: str
    width: int


class Stage(Struct, frozen=True):
    """A part of a plan: its ``number`` from 0, its ``blocks``, and the buffers that it receives and sends."""

    plan: Plan
    number: int
    blocks: range
    receives: tuple[Border, ...]
    sends: tuple[Border, ...]

    def __repr__(self) -> str:
        names = ", ".join(border.name for border in self.receives)
        return f"Stage(blocks {self.blocks.start} to {self.blocks.stop - 1}, receives {names or 'tokens'})"


def cut(plan: Plan, count: int) -> list[Stage]:
    """Cut a plan into ``count`` stages with about the same number of bytes of weights.

    Raises:
        InvalidRequest: the plan cannot be cut into this number of stages.
    """
    source = plan.source or plan
    if plan.encoder:
        raise InvalidRequest("an encoder-decoder cannot be cut into stages, because a step runs a whole source")
    if source.buffers[source.output].rows != "outputs":
        raise InvalidRequest("a sentence encoder cannot be cut into stages, because a step runs a whole text")
    starts = _starts(source.operations)
    places = [block for block in range(1, len(starts)) if _can_be_cut(source.operations, starts[block])]
    if count < 1 or count > len(places) + 1:
        raise InvalidRequest(
            f"stages={count}: the model's {len(starts)} blocks can be cut into 1 to {len(places) + 1} stages"
        )
    chosen = _balanced(source.operations, starts, places, count)
    blocks = [0, *chosen, len(starts)]
    ends = [0, *(starts[block] for block in chosen), len(source.operations)]
    parts = [list(source.operations[a:b]) for a, b in pairwise(ends)]
    for number in range(1, count):
        before = [*chain(*parts[:number])]
        needed = {name for name, _ in _needed(before, parts[number])}
        parts[number][:0] = [op for name, op in _repeated(before).items() if name in needed]
    stages = []
    for number, part in enumerate(parts):
        before, later = [*chain(*parts[:number])], [*chain(*parts[number + 1 :])]
        # A buffer that a later stage reads passes through all stages between.
        receives = _borders(before, [*part, *later]) if number else ()
        sends = _borders([*before, *part], later) if later else ()
        output = source.output if not later else ""
        own = optimize(replace(source, operations=tuple(part), output=output, points={}))
        stages.append(Stage(own, number, range(blocks[number], blocks[number + 1]), receives, sends))
    return stages


class BlockPart(Struct, frozen=True):
    """The operations ``first`` to ``stop`` - 1 of an unoptimized plan: one block, or several that share a cache.

    ``plan`` has these operations. A step that begins here needs the rows of the buffers ``receives``.
    """

    plan: Plan
    first: int
    stop: int
    receives: tuple[Border, ...]


def block_parts(plan: Plan) -> tuple[Plan, list[BlockPart]]:
    """Divide a plan into parts that a step may begin with, as few blocks each as possible.

    Returns the operations that come before a later part, for example the rotary angles of the step's positions, and the
    parts. They are not optimized.

    Raises:
        InvalidRequest: a step runs a whole text or source.
    """
    source = plan.source or plan
    if plan.encoder or source.buffers[source.output].rows != "outputs":
        raise InvalidRequest("a step of this model runs a whole text, so it cannot begin at a block")
    operations, starts = source.operations, _starts(source.operations)
    places = [start for start in starts[1:] if _can_be_cut(operations, start)]
    ends, parts, repeated = [0, *places, len(operations)], list[BlockPart](), dict[str, Operation]()
    for first, stop in pairwise(ends):
        before, after = operations[:first], operations[first:]
        needed = {name for name, _ in _needed(before, after)}
        repeated |= {name: op for name, op in _repeated(before).items() if name in needed}
        own = replace(source, operations=operations[first:stop], points={})
        parts.append(BlockPart(own, first, stop, _borders(before, after) if first else ()))
    return replace(source, operations=tuple(repeated.values()), points={}), parts


def _starts(operations: Sequence[Operation]) -> list[int]:
    """Indices of the first operation of each block."""
    starts: dict[int, int] = {}
    for index, op in enumerate(operations):
        if (block := block_of(op.stage)) is not None:
            starts.setdefault(block, index)
    return [starts[block] for block in sorted(starts)]


def _can_be_cut(operations: Sequence[Operation], at: int) -> bool:
    """True if no operation from index ``at`` on uses the cache of a layer that an operation before ``at`` writes."""
    written = {name for op in operations[:at] for name in op.writes if name.startswith(CACHE)}
    return not any(written & {*op.reads, *op.writes} for op in operations[at:])


def _repeated(operations: Sequence[Operation]) -> dict[str, Operation]:
    """The operations that stages repeat, by the buffer that they write. They belong to no block and read no buffer."""
    last = {name: op for op in operations for name in op.writes}
    return {name: op for name, op in last.items() if not op.reads and block_of(op.stage) is None}


def _needed(before: Sequence[Operation], after: Sequence[Operation]) -> list[tuple[str, int]]:
    """The buffers that ``before`` writes and ``after`` reads before it writes them, with their widths."""
    widths: dict[str, int] = {}
    for op in before:
        for name, view in zip(op.writes, op.views):
            if view is not None:
                widths[name] = view.width
    written, needed = set[str](), dict[str, int]()
    for op in after:
        for name in op.reads:
            if name in widths and name not in written:
                needed[name] = widths[name]
        written.update(op.writes)
    return list(needed.items())


def _borders(before: Sequence[Operation], after: Sequence[Operation]) -> tuple[Border, ...]:
    repeated = _repeated(before)
    return tuple(Border(name, width) for name, width in _needed(before, after) if name not in repeated)


def _balanced(operations: Sequence[Operation], starts: Sequence[int], places: Sequence[int], count: int) -> list[int]:
    """The first block of every stage except the first stage. Minimizes the bytes of weights of the largest stage."""
    ends = [*starts[1:], len(operations)]
    sizes = [sum(op.weight_bytes for op in operations[a:b]) for a, b in zip(starts, ends)]
    sums = [0]
    for size in sizes:
        sums.append(sums[-1] + size)
    best: dict[int, tuple[int, list[int]]] = {place: (sums[place], []) for place in [*places, len(sizes)]}
    for _ in range(count - 1):
        best = {
            end: min(
                (max(largest, sums[end] - sums[place]), [*chosen, place])
                for place, (largest, chosen) in best.items()
                if place < end
            )
            for end in best
            if any(place < end for place in best)
        }
    return best[len(sizes)][1]
