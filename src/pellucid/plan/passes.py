"""Rewrites of a plan: list in, list out. Each keeps the arithmetic, bit for bit.

fuse_quantize   a producer that can writes its activation blocks itself, instead of a pass over memory of its own
fuse_residual   a matrix product adds straight onto the residual stream
place_barriers  threads meet only where an operation needs what another thread has written
"""

from __future__ import annotations

from dataclasses import replace

from pellucid.kernels.library import KernelKey
from pellucid.kernels.packed import BLOCK, ROWS
from pellucid.plan.plan import At, Constant, Operation, Plan

CAN_QUANTIZE = {"norm", "activation", "attention"}


def optimize(plan: Plan) -> Plan:
    """All passes, in order."""
    operations = fuse_residual(fuse_quantize(list(plan.operations)))
    used = {name for op in operations for name in (*op.reads, *op.writes)}
    buffers = {name: buffer for name, buffer in plan.buffers.items() if name in used}
    return replace(plan, operations=tuple(place_barriers(operations)), buffers=buffers)


def fuse_quantize(operations: list[Operation]) -> list[Operation]:
    """norm, activation or attention, then quantize of its output: one operation."""
    out: list[Operation] = []
    for op in operations:
        before = out[-1] if out else None
        if (
            op.kernel.name == "quantize"
            and before is not None
            and before.kernel.name in CAN_QUANTIZE
            and before.writes == op.reads
            and _whole_blocks(before)
        ):
            fused = before.with_fields(quantized=op.fields["out"])
            kernel = KernelKey(before.kernel.name, (*before.kernel.parameters[:-1], *op.kernel.parameters))
            out[-1] = replace(fused, kernel=kernel, writes=(*before.writes, *op.writes))
        else:
            out.append(op)
    return out


def _whole_blocks(op: Operation) -> bool:
    """Whether the unit that one thread handles is made of whole blocks."""
    width = op.fields.get("width", op.kernel.parameters[0])
    return isinstance(width, int) and width % BLOCK == 0


def fuse_residual(operations: list[Operation]) -> list[Operation]:
    """out = x Wᵀ, then a += out: one operation, a = a + x Wᵀ."""
    out: list[Operation] = []
    for op in operations:
        before = out[-1] if out else None
        if (
            op.kernel.name == "add"
            and before is not None
            and before.kernel.name.startswith("matmul_")
            and isinstance(before.fields["addend"], Constant)
            and op.fields["b"] == At(before.writes[0])
        ):
            stride = before.fields["out_stride"]
            fused = before.with_fields(
                out=op.fields["out"], addend=op.fields["a"], addend_group=4 * ROWS, addend_row=stride
            )
            out[-1] = replace(fused, reads=(*before.reads, *op.writes), writes=op.writes)
        else:
            out.append(op)
    return out


def place_barriers(operations: list[Operation]) -> list[Operation]:
    """Mark the operations after which threads must meet: read after write, write after read, write after write."""
    out: list[Operation] = []
    reads: set[str] = set()
    writes: set[str] = set()
    for op in operations:
        mine_read, mine_written = set(op.reads), set(op.writes)
        if out and (mine_read & writes or mine_written & (reads | writes)):
            out[-1] = replace(out[-1], barrier=True)
            reads, writes = set(), set()
        reads |= mine_read
        writes |= mine_written
        out.append(op)
    return out
