"""Watched plans: plans with additional operations that record or change values.

A watch refers to a value by the index of its operation in the plan before the passes. The added operation follows the
watched operation. The passes fuse only adjacent operations, so the watched value stays in memory. The other operations
do not change, and a recording does not change a bit of the results.

    tap       copies columns of a value                        kernels/trace/columns.py
    edit      changes columns of a value
    pattern   recomputes attention scores or patterns          kernels/trace/pattern.py
    remade    recomputes them for the next operation, mix
    mix       applies changed scores or patterns to the output of heads    kernels/trace/pattern.py
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from pellucid.kernels.core.definitions import KernelKey, definition
from pellucid.plan.builder import ROW_COUNT, tiles
from pellucid.plan.passes import optimize
from pellucid.plan.plan import At, Operation, Plan, Value

OUT, REMADE = "trace", "trace.remade"
"""Names in ``reads`` and ``writes`` for the memory of recorded values, and for the patterns that a mix applies."""
Kind = Literal["tap", "edit", "pattern", "remade", "mix"]
ORDER: Mapping[Kind, int] = {"remade": 0, "mix": 1, "edit": 2, "tap": 3, "pattern": 3}
"""Order of the operations that follow a watched operation: changes of its value come before recordings."""


class Tap(Struct, frozen=True):
    """A recording of columns ``first`` to ``first + count - 1`` of the value that an operation writes.

    ``write`` is the index of the buffer among the buffers that the operation writes. If the parts of a token have
    separate rows, the columns are in the rows of part ``part``.
    """

    operation: int
    first: int
    count: int
    write: int = 0
    part: int = 0


class ColumnEdit(Struct, frozen=True):
    """A change of columns of the value that an operation writes. Fields are as in ``Tap``.

    If ``paused`` is true, the step stops before the edit, and a Python function computes the change.
    """

    operation: int
    first: int
    count: int
    write: int = 0
    part: int = 0
    paused: bool = False


class PatternTap(Struct, frozen=True):
    """A recording of the patterns (``raw``: the scores) of heads ``first`` to ``first + count - 1`` of an attention.

    Taps of the same ``block`` are recorded side by side, in their order.
    """

    operation: int
    first: int
    count: int
    raw: bool = False
    block: int = 0


class PatternEdit(Struct, frozen=True):
    """A change of the patterns (``raw``: the scores) of heads ``first`` to ``first + count - 1`` of an attention.

    ``paused`` is as in ``ColumnEdit``. If ``chained``, the patterns are the results of the change of scores before it,
    which has the same heads and rows.
    """

    operation: int
    first: int
    count: int
    raw: bool = False
    paused: bool = False
    chained: bool = False


class StateTap(Struct, frozen=True):
    """A part (``size`` values) of the recurrent state of a cached layer, which is recorded or changed after a step."""

    layer: int
    part: str
    size: int


class Watch(Struct, frozen=True):
    """Recordings and changes of values of a sequence. Edits apply in the order of ``edits``.

    ``states`` are read from the cache after the step, and ``state_edits`` are changed there, without an operation.
    """

    taps: tuple[Tap, ...] = ()
    patterns: tuple[PatternTap, ...] = ()
    edits: tuple[ColumnEdit, ...] = ()
    pattern_edits: tuple[PatternEdit, ...] = ()
    states: tuple[StateTap, ...] = ()
    state_edits: tuple[StateTap, ...] = ()


class Site(Struct, frozen=True):
    """An operation that a watch added: ``record`` is its index in the optimized plan.

    ``watch`` is the index of the watch, ``number`` the index among the watch's recordings or changes of this ``kind``.
    """

    watch: int
    kind: Kind
    number: int
    record: int


def traced_plan(plan: Plan, watches: Sequence[Watch]) -> tuple[Plan, list[Site]]:
    """Add the operations of all ``watches`` to an unoptimized ``plan``, and optimize the plan.

    Returns the optimized plan and the added operations. The edits of a value come before its taps, so a tap records the
    edited value.
    """
    after: dict[int, list[tuple[int, Operation]]] = {}
    for number, watch in enumerate(watches):
        parts: dict[Kind, Sequence[Tap | ColumnEdit | PatternTap | PatternEdit]] = {
            "edit": watch.edits,
            "tap": watch.taps,
            "pattern": watch.patterns,
            "remade": [PatternTap(edit.operation, edit.first, edit.count, edit.raw) for edit in watch.pattern_edits],
            "mix": watch.pattern_edits,
        }
        for kind, own in parts.items():
            for index, part in enumerate(own):
                added = _operation(plan.operations[part.operation], part)
                # This write causes a barrier: a mix reads the patterns of all threads.
                writes = (*added.writes, REMADE) if kind == "remade" else added.writes
                added = replace(added, stage=f"{OUT}/{number}/{kind}/{index}", writes=writes)
                after.setdefault(part.operation, []).append((ORDER[kind], added))
    operations: list[Operation] = []
    for number, op in enumerate(plan.operations):
        operations.append(op)
        operations += [added for _, added in sorted(after.get(number, ()), key=itemgetter(0))]
    optimized = optimize(replace(plan, operations=tuple(operations)))
    return optimized, list(_sites(optimized))


def _sites(plan: Plan) -> Iterator[Site]:
    for record, op in enumerate(plan.operations):
        if op.stage.startswith(f"{OUT}/"):
            _, watch, kind, number = op.stage.split("/")
            yield Site(int(watch), kind, int(number), record)  # type: ignore[arg-type]


def _operation(op: Operation, part: Tap | ColumnEdit | PatternTap | PatternEdit) -> Operation:
    """The operation of a watch that follows ``op``. Addresses that change with each step are 0 in its record."""
    if isinstance(part, PatternEdit):
        key = KernelKey("trace_mix", value_dim=op.kernel["value_dim"], kv_dtype=op.kernel["kv_dtype"])
        fields = _fields(key, {**op.fields, "first": part.first, "raw": int(part.raw)})
        reads = (REMADE, op.writes[0], *(name for name in op.reads if name.startswith("cache.")))
        return Operation("", key, fields, reads, op.writes[:1])
    if isinstance(part, PatternTap):
        kernel = "trace_disentangled" if "buckets" in op.fields else "trace_pattern"
        key = KernelKey(kernel, head_dim=op.kernel["head_dim"], kv_dtype=op.kernel["kv_dtype"])
        own = {"raw": int(part.raw), "first": part.first, "count": part.count, "out": 0}
        return Operation("", key, _fields(key, {**op.fields, **own}), op.reads, (OUT,), partitions={OUT: OUT})
    buffer, view = op.writes[part.write], op.views[part.write]
    assert view is not None
    known: dict[str, Value] = {"x": At(buffer), "width": view.width, "first": part.first, "count": part.count}
    known["of"] = ROW_COUNT[op.rows]
    reads, partitions = (buffer,), {buffer: tiles(view.width), OUT: OUT}
    if view.places:
        known |= {"places": At(view.places), "place_stride": 4 * view.place_width, "part": part.part}
        reads, partitions = (buffer, view.places), {OUT: OUT}
    key = KernelKey("trace_edit" if isinstance(part, ColumnEdit) else "trace_copy")
    writes = (buffer,) if isinstance(part, ColumnEdit) else (OUT,)
    return Operation("", key, _fields(key, known), reads, writes, partitions=partitions)


def _fields(kernel: KernelKey, known: Mapping[str, Value]) -> dict[str, Value]:
    """The fields of a kernel's record: the ``known`` fields, and 0 for the others."""
    record = definition(kernel.name).record
    assert record is not None
    return {name: known.get(name, 0) for name in record.fields}
