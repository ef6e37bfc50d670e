"""pellucid points MODEL: the hook points of a model, where values can be traced and edited."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pellucid.cli import common
from pellucid.cli.command import Command


def command(
    model: common.Model,
    name: Annotated[
        str | None,
        typer.Argument(
            help="Only points of this name; * stands for a part of it.", metavar="NAME", show_default=False
        ),
    ] = None,
    whole: Annotated[
        bool, typer.Option("--all", help="Show every block, not the first of its kind alone.")
    ] = False,
    precise: common.Precise = False,
    json: common.Json = False,
) -> None:
    """Show the values of a run that can be traced and edited, in the order of the pipeline. No weights are loaded.

    A shape has B sequences, T tokens and the model's own dimensions: D width, H heads, G key/value heads, K and V
    widths of a head's key and value, F neurons, E experts, C chosen experts, L layers, P width of a layer's embedding.
    """
    from pellucid.trace.output_points import all_points
    from pellucid.trace.selection import select

    points = all_points(common.plan(model, precise, None))
    wanted = [one.point for one in select(points, [name])] if name is not None else list(points.values())
    rows = [
        {"name": one.name, "shape": one.shape, "dtype": one.dtype, "unit": one.unit, "about": one.about}
        for one in wanted
    ]
    if json:
        common.print_json(rows)
        return
    table = common.table("point", "shape", "type", "unit", "what it is", whole=("point", "shape"))
    for row in rows if whole or name is not None else _first_of_each(rows):
        table.add_row(row["name"], row["shape"], row["dtype"], row["unit"], row["about"])
    common.show(table)


def _first_of_each(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without the blocks that equal an earlier block. The first block of a kind stands for all equal blocks."""
    blocks: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        parts = row["name"].split(".")
        if parts[0] == "blocks":
            blocks.setdefault(parts[1], []).append(row)
    first: dict[Any, str] = {}
    alike: dict[str, list[int]] = {}
    for block, own in blocks.items():
        key = tuple((row["name"].partition(".")[2].partition(".")[2], row["shape"]) for row in own)
        alike.setdefault(first.setdefault(key, block), []).append(int(block))
    found = []
    for row in rows:
        parts = row["name"].split(".")
        if parts[0] != "blocks":
            found.append(row)
        elif parts[1] in alike:
            numbers = alike[parts[1]]
            which = f"{{{_ranges(numbers)}}}" if len(numbers) > 1 else parts[1]
            found.append({**row, "name": f"blocks.{which}.{'.'.join(parts[2:])}"})
    return found


def _ranges(numbers: list[int]) -> str:
    """Numbers as text, with ranges for consecutive numbers: "0-3,5"."""
    from pellucid.trace.selection import runs_of

    return ",".join(
        str(first) if count == 1 else f"{first}-{first + count - 1}" for first, count in runs_of(numbers)
    )


COMMAND = Command("points", command)
