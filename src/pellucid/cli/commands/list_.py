"""pellucid list: the models on this machine, and the models of the catalogue."""

from __future__ import annotations

from typing import Annotated, Any

from pellucid.cli import common
from pellucid.cli.catalogue_facts import NOT_RUN
from pellucid.cli.command import Command
from pellucid.errors.messages import one_line


def command(
    families: Annotated[
        bool, common.flag("--families", "List the supported model families and their parts instead.")
    ] = False,
    json: common.Json = False,
) -> None:
    """List the models on this machine, and the models of the catalogue."""
    if families:
        _families(json)
        return
    from pellucid.weights.catalogue import catalogue
    from pellucid.weights.store import installed

    here = {model.name: model for model in installed()}
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "bytes": entry.bytes,
            "here": name in here and here[name].complete,
            "licence": entry.licence,
            "publisher": entry.publisher,
            "description": entry.description,
            "origin": entry.origin,
            "sha256": entry.weights.sha256,
        }
        for name, entry in catalogue().items()
    ]
    for name, model in here.items():
        if name not in catalogue():
            source = one_line(model.source)
            rows.append({"name": name, "bytes": model.bytes, "here": model.complete, "description": source})
    if json:
        empty = dict.fromkeys(rows[0], "")
        common.print_json([{**empty, **row} for row in rows])
        return
    shown = common.table("name", "MB", "here", "licence", "publisher", "what it is", right=("MB",))
    for row in rows:
        present = "yes" if row["here"] else ""
        licence, publisher = row.get("licence", ""), row.get("publisher", "")
        shown.add_row(
            row["name"], f"{row['bytes'] / 1e6:.0f}", present, licence, publisher, row["description"]
        )
    common.show(shown)
    print()
    origins = common.table("name", "where its files come from", no_wrap=("name",))
    for row in rows:
        if row.get("origin"):
            origins.add_row(row["name"], row["origin"])
    common.show(origins)
    print()
    common.show(NOT_RUN)


def _families(json: bool) -> None:
    """Print the families, the names of their architectures in each kind of file, and their parts."""
    from pellucid.model.describe import parts
    from pellucid.model.family import known_families
    from pellucid.testing import planned_model

    rows = [
        {
            "family": name,
            "gguf": [*family.gguf],
            "safetensors": [*family.safetensors],
            "parts": parts(planned_model(name).spec),
        }
        for name, family in sorted(known_families().items())
    ]
    if json:
        common.print_json(rows)
        return
    shown = common.table("family", "gguf", "safetensors", "parts")
    for row in rows:
        shown.add_row(row["family"], *(", ".join(row[key]) for key in ("gguf", "safetensors", "parts")))
    common.show(shown)


COMMAND = Command("list", command)
