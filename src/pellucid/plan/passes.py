"""Passes: rewrites of a plan that keep every bit of its results.

pick_early      operations after the last attention or recurrent layer compute only the rows of the output
fuse_quantize   an operation also writes its output as activation blocks, which saves a pass over memory
fuse_residual   a matrix product without a bias adds directly to the residual stream
replicate_norms steps with one row replicate a norm and the quantization of its output on each thread, so that no thread
                waits for another
place_barriers  a barrier follows an operation only if a later operation reads or overwrites data of another thread
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from msgspec.structs import replace

from pellucid.kernels.core.definitions import Traits, definition
from pellucid.kernels.matmul.packed_layout import BLOCK, ROWS
from pellucid.plan.builder import NO_BIAS, ROW_COUNT
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
