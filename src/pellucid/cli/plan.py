"""pellucid plan MODEL: the program that the model is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pellucid.cli import common

if TYPE_CHECKING:
    from pellucid.plan.plan import Operation


def command(
    model: common.Model,
    whole: Annotated[
        bool, typer.Option("--all", help="Every block, also those that are like the one before.")
    ] = False,
    activation_bits: common.ActivationBits = 16,
    json: common.Json = False,
) -> None:
    """The program that a model is. Nothing is loaded.

    An operation has a stage, a kernel, shapes (T tokens, R of them with logits, B sequences), the bytes of weights
    that it reads in a step, and its multiply-adds for a token. A dot is where the threads wait for each other.
    """
    from rich.filesize import decimal

    from pellucid import pipeline
    from pellucid.llm import activation_planes
    from pellucid.model import read_model
    from pellucid.plan.network import layouts
    from pellucid.weights.open import open_checkpoint
    from pellucid.weights.store import resolve

    planes = activation_planes(activation_bits)
    with common.progress() as bars:
        checkpoint = open_checkpoint(resolve(model, progress=bars))
    read = read_model(checkpoint)
    plan = pipeline.forward(read.spec, layouts(checkpoint, read), planes=planes)
    if json:
        common.print_json([_row(op) for op in plan.operations])
        return
    shown = common.table(
        *("stage", "operation", "shape", "bytes", "mul-adds", ""),
        right=("bytes", "mul-adds"),
        whole=("stage", "operation"),
        gap=1,
    )
    group = ""
    for op in _shortened(plan.operations, whole):
        if isinstance(op, str):
            shown.add_row(*op.split(": "), style="dim")
            continue
        above, _, name = op.stage.rpartition(".")
        if above.startswith("blocks.") and above != group:
            shown.add_row(above)
        group = above
        stage = f"  {name}" if above.startswith("blocks.") else op.stage
        numbers = decimal(op.weight_bytes) if op.weight_bytes else "", _millions(op.multiply_adds)
        shown.add_row(stage, str(op.kernel), op.shape, *numbers, "·" if op.barrier else "")
    shown.add_row(
        "total",
        f"{len(plan.operations)} operations",
        f"{sum(op.barrier for op in plan.operations)} waits",
        decimal(sum(op.weight_bytes for op in plan.operations)),
        _millions(sum(op.multiply_adds for op in plan.operations)),
        style="bold",
    )
    common.show(shown)


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count else ""


def _row(op: Operation) -> dict[str, object]:
    return {
        "stage": op.stage,
        "operation": str(op.kernel),
        "shape": op.shape,
        "weight_bytes": op.weight_bytes,
        "multiply_adds": op.multiply_adds,
        "reads": op.reads,
        "writes": op.writes,
        "barrier": op.barrier,
    }


def _shortened(operations: tuple[Operation, ...], whole: bool) -> list[Operation | str]:
    """Blocks that are like an earlier one, but for their number, are told in a line."""
    blocks: dict[int, list[Operation]] = {}
    for op in operations:
        if op.stage.startswith("blocks."):
            blocks.setdefault(int(op.stage.split(".")[1]), []).append(op)
    firsts: dict[tuple[object, ...], int] = {}
    model = {i: firsts.setdefault(tuple(_likeness(op) for op in ops), i) for i, ops in blocks.items()}
    out: list[Operation | str] = []
    for op in operations:
        index = int(op.stage.split(".")[1]) if op.stage.startswith("blocks.") else -1
        if whole or index < 0 or model[index] == index:
            out.append(op)
        elif op is blocks[index][0]:
            out.append(f"blocks.{index}: like blocks.{model[index]}")
    return _joined(out)


def _joined(lines: list[Operation | str]) -> list[Operation | str]:
    """Consecutive blocks that are like the same one become one line."""
    out: list[Operation | str] = []
    run: list[str] = []
    for line in [*lines, ""]:
        alike = isinstance(line, str) and run and line.partition(":")[2] == run[0].partition(":")[2]
        if run and not alike:
            first, last = run[0].partition(":")[0], run[-1].partition(":")[0]
            out.append(
                run[0] if len(run) == 1 else f"{first} ... {last.split('.')[1]}:{run[0].partition(':')[2]}"
            )
            run = []
        if isinstance(line, str):
            run += [line] if line else []
        else:
            out.append(line)
    return out


def _likeness(op: Operation) -> tuple[object, ...]:
    return op.stage.split(".", 2)[2], op.kernel, op.shape
