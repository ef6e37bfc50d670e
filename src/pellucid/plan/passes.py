"""Passes: rewrites of a plan that keep every bit of its results.

pick_early      operations after the last attention or recurrent layer compute only the rows of the output
fuse_quantize   an operation also writes its output as activation blocks, which saves a pass over memory
fuse_residual   a matrix product without a bias adds directly to the residual stream
replicate_norms steps with one row replicate a norm and the quantization of its output on each thread, so that no thread
                waits for another
place_barriers  a barrier follows an operation only if a later operation reads or overwrites data of another thread
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from pellucid.kernels.core.definitions import KernelKey, Traits, definition
from pellucid.kernels.matmul.layouts import BLOCK, ROWS
from pellucid.plan.builder import NO_BIAS, ROW_COUNT, tiles
from pellucid.plan.plan import LETTER, REPLICATED, At, Operation, Plan, Value
from pellucid.plan.points import RowKind


def traits(op: Operation) -> Traits:
    """The traits of an operation's kernel."""
    return definition(op.kernel.name).traits


def optimize(plan: Plan) -> Plan:
    """Apply all passes, in order."""
    picked = pick_early(plan)
    operations = replicate_norms(fuse_residual(fuse_quantize(list(picked.operations))))
    used = {name for op in operations for name in (*op.reads, *op.writes)}
    buffers = {name: buffer for name, buffer in picked.buffers.items() if name in used}
    setup = plan.setup and replace(plan.setup, plan=optimize(plan.setup.plan))
    return replace(plan, operations=tuple(place_barriers(operations)), buffers=buffers, setup=setup, source=plan)


def pick_early(plan: Plan) -> Plan:
    """Move `pick` before the last operations that work row by row and need only the buffer that `pick` reads.

    In most models these operations are the feed-forward of the last block, which most tokens of a prompt then skip. The
    moved operations write to new buffers, with one row for each picked row.
    """
    operations, buffers = list(plan.operations), plan.buffers
    pick_index = next((index for index, op in enumerate(operations) if op.kernel.name == "pick"), 0)
    first = _first_of_tail(operations, pick_index)
    if first == pick_index:
        return plan
    pick, tail = operations[pick_index], operations[first:pick_index]
    names = {name: f"{pick.rows}.{name}" for op in tail for name in op.writes}
    names |= {pick.reads[0]: pick.writes[0]}
    rows = {name: replace(buffers[buffer], name=name, rows=pick.rows) for buffer, name in names.items()}
    moved = [_of_rows(op, pick.rows, names) for op in tail]
    together = (*operations[:first], pick, *moved, *operations[pick_index + 1 :])
    return replace(plan, operations=together, buffers={**rows, **buffers})


def _first_of_tail(operations: list[Operation], at: int) -> int:
    """Index of the first operation that `pick`, at index ``at``, can be moved before; ``at`` if there is none."""
    first, needed = at, set(operations[at].reads)
    for index in range(at - 1, -1, -1):
        op = operations[index]
        if not traits(op).by_row or op.rows != "tokens":
            break
        needed = needed - set(op.writes) | set(op.reads)
        if needed == set(operations[at].reads):
            first = index
    return first


def _of_rows(op: Operation, rows: RowKind, names: Mapping[str, str]) -> Operation:
    """Rewrite an operation to compute only the picked rows, with its buffers renamed by ``names``."""

    def renamed(value: Value) -> Value:
        return At(names[value.buffer], value.offset) if isinstance(value, At) else value

    fields = {name: renamed(value) for name, value in op.fields.items()} | {"rows": ROW_COUNT[rows]}
    return replace(
        op,
        fields=fields,
        reads=tuple(names[name] for name in op.reads),
        writes=tuple(names[name] for name in op.writes),
        rows=rows,
        shape=op.shape.replace(f"({LETTER[op.rows]},", f"({LETTER[rows]},"),
        partitions={names[name]: partition for name, partition in op.partitions.items()},
    )


def fuse_quantize(operations: list[Operation]) -> list[Operation]:
    """Fuse a norm, activation or attention with the quantization of its output."""
    out: list[Operation] = []
    for op in operations:
        before = out[-1] if out else None
        if (
            op.kernel.name == "quantize"
            and before is not None
            and before.writes == op.reads
            and _whole_blocks(before)
            and (not op.fields["factors"] or "factors" in before.fields)
        ):
            fused = before.with_fields(quantized=op.fields["out"])
            kernel = before.kernel.replace(**dict(op.kernel.parameters))
            if op.fields["factors"]:
                fused = fused.with_fields(factors=op.fields["factors"])
            partitions = dict(before.partitions)
            if before.writes[0] in partitions:  # the blocks have the same partition as the rows
                partitions[op.writes[0]] = partitions[before.writes[0]]
            out[-1] = replace(fused, kernel=kernel, writes=(*before.writes, *op.writes), partitions=partitions)
        else:
            out.append(op)
    return out


def _whole_blocks(op: Operation) -> bool:
    """True if an operation can write activation blocks, and each block is written by a single thread."""
    if not (name := traits(op).quantizes):
        return False
    width = op.fields[name] if name in op.fields else op.kernel[name]
    return isinstance(width, int) and width % BLOCK == 0


def fuse_residual(operations: list[Operation]) -> list[Operation]:
    """Fuse out = x Wᵀ and a += out into a = a + x Wᵀ."""
    out: list[Operation] = []
    for op in operations:
        before = out[-1] if out else None
        if (
            op.kernel.name == "add"
            and before is not None
            and traits(before).product
            and before.fields.get("addend") == NO_BIAS
            and op.fields["factor"] == 1.0
            and op.fields["b"] == At(before.writes[0])
        ):
            stride = before.fields["out_stride"]
            fused = before.with_fields(
                out=op.fields["out"], addend=op.fields["a"], addend_group=4 * ROWS, addend_row=stride
            )
            partitions = {op.writes[0]: before.partitions[before.writes[0]]}
            out[-1] = replace(
                fused,
                stage=op.stage,
                includes=(*before.includes, before.stage),
                reads=(*before.reads, *op.writes),
                writes=op.writes,
                partitions=partitions,
            )
        else:
            out.append(op)
    return out


def replicate_norms(operations: list[Operation]) -> list[Operation]:
    """Replicate norms that only matrix products read, directly or through `quantize`.

    In steps with one row each thread computes and reads its own copy.
    """
    out = list(operations)
    for index, op in enumerate(operations):
        if op.kernel.name != "norm" or op.fields["parts"] != 1 or set(op.writes) & set(op.reads):
            continue
        makers, readers = [index], list(_readers(op.writes, operations, index + 1))
        makers += [reader for reader in readers if operations[reader].kernel.name == "quantize"]
        for maker in makers[1:]:
            readers += _readers(operations[maker].writes, operations, maker + 1)
        products = set(readers) - set(makers)
        if products and all(traits(operations[product]).product for product in products):
            copied = {name for maker in makers for name in operations[maker].writes}
            for i in (*makers, *products):
                copies = {name: REPLICATED for name in (*out[i].reads, *out[i].writes) if name in copied}
                out[i] = replace(out[i].with_fields(replicated=1), partitions={**out[i].partitions, **copies})
    return out


def _readers(buffers: tuple[str, ...], operations: list[Operation], first: int) -> Iterator[int]:
    """Yield the indices of the operations that read ``buffers`` before the buffers are overwritten."""
    alive = set(buffers)
    for index in range(first, len(operations)):
        if alive & set(operations[index].reads):
            yield index
        alive -= set(operations[index].writes)
        if not alive:
            return


Access: TypeAlias = tuple[str, str | None]
"""A buffer, and its partition in an operation that reads or writes it."""


def place_barriers(operations: list[Operation]) -> list[Operation]:
    """Add the barriers for dependencies: read after write, write after read, write after write."""
    out: list[Operation] = []
    reads, writes = set[Access](), set[Access]()  # since the last barrier
    for op in operations:
        conflicts = _conflicts(writes, (*op.reads, *op.writes), op) | _conflicts(reads, op.writes, op)
        copies = {access for access in conflicts if access[1] == REPLICATED == op.partitions.get(access[0])}
        if conflicts - copies or (copies and out[-1].rows != op.rows):
            out[-1] = replace(out[-1], barrier="always")
            reads, writes = set(), set()
        elif copies:
            out[-1] = replace(out[-1], barrier="rows")
            reads = {access for access in reads if access[1] != REPLICATED}
            writes = {access for access in writes if access[1] != REPLICATED}
        reads.update((buffer, op.partitions.get(buffer)) for buffer in op.reads)
        writes.update((buffer, op.partitions.get(buffer)) for buffer in op.writes)
        out.append(op)
    return out


def _conflicts(accesses: set[Access], buffers: tuple[str, ...], op: Operation) -> set[Access]:
    """The earlier accesses to ``buffers``, except accesses with the partition of ``op``.

    Accesses to replicated buffers always count, because their partitions agree only in steps with one row.
    """
    return {
        (buffer, partition)
        for buffer, partition in accesses
        if buffer in buffers
        and (partition is None or partition == REPLICATED or partition != op.partitions.get(buffer))
    }


# Watched plans: plans with additional operations that record or change values.
#
# A watch refers to a value by the index of its operation in the plan before the passes. The added operation follows the
# watched operation. The passes fuse only adjacent operations, so the watched value stays in memory. The other
# operations do not change, and a recording does not change a bit of the results.
#
#     tap       copies columns of a value                        kernels/ops/copies.py
#     edit      changes columns of a value
#     pattern   recomputes attention scores or patterns          kernels/attention/pattern.py
#     remade    recomputes them for the next operation, mix
#     mix       applies changed scores or patterns to the output of heads    kernels/attention/pattern.py

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
