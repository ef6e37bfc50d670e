"""pellucid points MODEL: the hook points of a model, where values can be traced and edited."""

from __future__ import annotations

from typing import Any

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.loading import Precise
from pellucid.load_options import LoadOptions


def command(
    model: common.Model,
    name: str | None = common.argument("NAME", "Only points with this name; * matches any part: blocks.*.residual."),
    whole: bool = common.flag("--all", "Show every block, even if it equals an earlier block."),
    precise: Precise = False,
    json: common.Json = False,
) -> None:
    """Show the values of a run that can be traced and edited, in the order of the pipeline. No weights are loaded.

    The letters of a shape are: B sequences, T tokens, D width, H heads, G key/value heads, K and V widths of a head's
    key and value, F neurons, E experts, C chosen experts, L layers, P width of a layer's embedding.
    """
    from pellucid.model.read import read_model
    from pellucid.trace.output_points import all_points
    from pellucid.trace.selection import select

    generates = read_model(common.opened(model)).spec.generates
    points = all_points(common.plan(model, LoadOptions(precise=precise)), generates=generates)
    selected = [match.point for match in select(points, [name])] if name is not None else list(points.values())
    rows = [
        {"name": point.name, "shape": point.shape, "dtype": point.dtype, "unit": point.unit, "about": point.about}
        for point in selected
    ]
    if json:
        common.print_json(rows)
        return
    table = common.table("point", "shape", "type", "unit", "what it is", no_wrap=("point", "shape"))
    for row in rows if whole or name is not None else _shortened(rows):
        table.add_row(row["name"], row["shape"], row["dtype"], row["unit"], row["about"])
    common.show(table)


def _shortened(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without the blocks that equal an earlier block, separately for the encoder of an encoder-decoder."""
    from pellucid.model.shapes import ENCODER

    encoder = [{**row, "name": row["name"].removeprefix(ENCODER)} for row in rows if row["name"].startswith(ENCODER)]
    others = [row for row in rows if not row["name"].startswith(ENCODER)]
    of_encoder = [{**row, "name": ENCODER + row["name"]} for row in _first_of_each(encoder)]
    return [*of_encoder, *_first_of_each(others)]


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
    first_rows = []
    for row in rows:
        parts = row["name"].split(".")
        if parts[0] != "blocks":
            first_rows.append(row)
        elif parts[1] in alike:
            numbers = alike[parts[1]]
            which = f"{{{_ranges(numbers)}}}" if len(numbers) > 1 else parts[1]
            first_rows.append({**row, "name": f"blocks.{which}.{'.'.join(parts[2:])}"})
    return first_rows


def _ranges(numbers: list[int]) -> str:
    """Numbers as text, with ranges for consecutive numbers: "0-3,5"."""
    from pellucid.trace.selection import runs_of

    return ",".join(str(first) if count == 1 else f"{first}-{first + count - 1}" for first, count in runs_of(numbers))


COMMAND = Command("points", command)
