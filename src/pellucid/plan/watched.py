"""Watched plans: a plan with operations that copy values out, or change them, after the operations that make these.

A value is meant by the number of its operation in the plan before any pass. The passes fuse what lies side by side, so
what a watched operation makes stays in memory because another operation follows it; nothing else of the plan changes,
and no bit of its results.

    tap       columns of a value are copied                    kernels/trace/columns.py
    edit      columns of a value are changed
    pattern   scores or patterns of heads are computed again   kernels/trace/pattern.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pellucid.kernels.core.definitions import KernelKey
from pellucid.plan.builder import columns
from pellucid.plan.passes import optimize
from pellucid.plan.plan import At, Operation, Plan, Value

OUT = "trace"
"""What stands for the memory that traces are written to, among the things that operations write."""
PATTERN_FIELDS = (
    *(
        "q",
        "heads",
        "kv_heads",
        "keys",
        "group",
        "page_bytes",
        "scale",
        "softcap",
        "causal",
        "window",
        "chunked",
    ),
    *("bias", "bias_stride", "sinks", "cross"),
)
Kind = Literal["tap", "edit", "pattern"]


@dataclass(frozen=True)
class Tap:
    """Columns ``first`` to ``first + count - 1`` of what an operation writes to its buffer ``write``, copied out."""

    operation: int
    first: int
    count: int
    write: int = 0


@dataclass(frozen=True)
class Edit:
    """Columns of what an operation writes to its buffer ``write``, changed.

    ``paused``: the step stops before it, so that a function can say what becomes of the value.
    """

    operation: int
    first: int
    count: int
    write: int = 0
    paused: bool = False


@dataclass(frozen=True)
class PatternTap:
    """The patterns (``raw``: the scores) of heads ``first`` to ``first + count - 1`` of an attention operation."""

    operation: int
    first: int
    count: int
    raw: bool = False


@dataclass(frozen=True)
class Watch:
    """What is done to the values of some rows: ``taps`` that record together, ``patterns``, and ``edits`` in order."""

    taps: tuple[Tap, ...] = ()
    patterns: tuple[PatternTap, ...] = ()
    edits: tuple[Edit, ...] = ()


@dataclass(frozen=True)
class Site:
    """Where an operation of a watch is in a plan: ``record`` is its number among the plan's operations."""

    watch: int
    kind: Kind
    number: int
    record: int


def watched_plan(plan: Plan, watches: Sequence[Watch]) -> tuple[Plan, list[Site]]:
    """The optimised form of a ``plan`` without passes, with the operations of all ``watches``, and where these are.

    Edits of a value come before its taps, which record what the edits leave.
    """
    after: dict[int, list[tuple[bool, Operation]]] = {}
    for number, watch in enumerate(watches):
        parts: dict[Kind, Sequence[Tap | Edit | PatternTap]]
        parts = {"edit": watch.edits, "tap": watch.taps, "pattern": watch.patterns}
        for kind, own in parts.items():
            for at, part in enumerate(own):
                follows = replace(
                    _operation(plan.operations[part.operation], part), stage=f"{OUT}/{number}/{kind}/{at}"
                )
                after.setdefault(part.operation, []).append((kind != "edit", follows))
    operations: list[Operation] = []
    for number, op in enumerate(plan.operations):
        operations += [op, *(one for _, one in sorted(after.get(number, ()), key=lambda one: one[0]))]
    made = optimize(replace(plan, operations=tuple(operations)))
    return made, list(_sites(made))


def _sites(plan: Plan) -> Iterator[Site]:
    for record, op in enumerate(plan.operations):
        if op.stage.startswith(f"{OUT}/"):
            _, watch, kind, number = op.stage.split("/")
            yield Site(int(watch), kind, int(number), record)  # type: ignore[arg-type]


def _operation(op: Operation, part: Tap | Edit | PatternTap) -> Operation:
    """The operation that follows ``op``; the addresses that change from step to step are 0."""
    if isinstance(part, PatternTap):
        fields: dict[str, Value] = {name: op.fields[name] for name in PATTERN_FIELDS}
        fields |= {"raw": int(part.raw), "first": part.first, "count": part.count}
        fields |= dict.fromkeys(("rows", "out", "out_stride", "out_head"), 0)
        key = KernelKey("trace_pattern", head_dim=op.kernel["head_dim"], kv_dtype=op.kernel["kv_dtype"])
        return Operation("", key, fields, op.reads, (OUT,), partitions={OUT: OUT})
    buffer, view = op.writes[part.write], op.views[part.write]
    assert view is not None
    own: dict[str, Value] = {"x": At(buffer), "width": view.width, "first": part.first, "count": part.count}
    partitions = {buffer: columns(view.width), OUT: OUT}
    if isinstance(part, Edit):
        fields = {**own, "entries": 0}
        return Operation("", KernelKey("trace_edit"), fields, (buffer,), (buffer,), partitions=partitions)
    fields = {**own, **dict.fromkeys(("rows", "out", "out_stride"), 0)}
    return Operation("", KernelKey("trace_copy"), fields, (buffer,), (OUT,), partitions=partitions)
