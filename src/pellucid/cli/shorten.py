"""A plan as a short table: consecutive blocks that equal an earlier block, except for their number, share a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pellucid.plan.plan import Operation


@dataclass(frozen=True)
class Line:
    """A line of a table. ``indices`` are its operations: a single operation, or all operations of some blocks.

    For blocks, ``text`` names the blocks ("blocks.1 ... 29"), and ``alike`` the block they equal ("like blocks.0").
    """

    indices: list[int]
    text: str = ""
    alike: str = ""


def shortened(operations: Sequence[Operation], whole: bool = False) -> list[Line]:
    """Lines of a plan. ``whole``: a line for each operation."""
    blocks: dict[int, list[int]] = {}
    for index, op in enumerate(operations):
        blocks.setdefault(_block(op), []).append(index)
    firsts: dict[tuple[object, ...], int] = {}
    like = {
        block: firsts.setdefault(tuple(_signature(operations[i]) for i in indices), block)
        for block, indices in blocks.items()
        if block >= 0
    }
    lines: list[Line] = []
    run: list[int] = []  # consecutive blocks that equal the same earlier block
    for index, op in enumerate(operations):
        block = _block(op)
        if whole or block < 0 or like[block] == block:
            lines.append(Line([index]))
        elif index == blocks[block][0]:
            if run and run[-1] == block - 1 and like[run[0]] == like[block]:
                lines.pop()
                run.append(block)
            else:
                run = [block]
            last = f" ... {block}" if len(run) > 1 else ""
            indices = [i for each in run for i in blocks[each]]
            lines.append(Line(indices, f"blocks.{run[0]}{last}", f"like blocks.{like[block]}"))
    return lines


def _block(op: Operation) -> int:
    """Number of an operation's block; -1 for an operation outside the blocks."""
    return int(op.stage.split(".")[1]) if op.stage.startswith("blocks.") else -1


def _signature(op: Operation) -> tuple[object, ...]:
    return op.stage.split(".", 2)[2], op.kernel, op.shape
