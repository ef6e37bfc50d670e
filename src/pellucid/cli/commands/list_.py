"""pellucid list: the models that are here, and those that have a short name."""

from __future__ import annotations

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.errors.messages import one_line


def command(json: common.Json = False) -> None:
    """List the models that are here, and those of the catalogue."""
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


COMMAND = Command("list", command)
