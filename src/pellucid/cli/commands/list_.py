"""pellucid list: the models on this machine, and the models of the catalogue."""

from __future__ import annotations

from typing import Annotated

from pellucid.cli import common
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
    rows = []
    for name, entry in catalogue().items():
        rows.append(
            (name, entry.bytes, name in here and here[name].complete, entry.licence, entry.description)
        )
    for name, model in here.items():
        if name not in catalogue():
            rows.append((name, model.bytes, model.complete, "", one_line(model.source)))
    if json:
        keys = ("name", "bytes", "here", "licence", "description")
        common.print_json([dict(zip(keys, row)) for row in rows])
        return
    shown = common.table("name", "MB", "here", "licence", "what it is", right=("MB",))
    for name, size, present, licence, description in rows:
        shown.add_row(name, f"{size / 1e6:.0f}", "yes" if present else "", licence, description)
    common.show(shown)


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
