"""The manifest of a stored model, and checks that the model's files have not changed since they were pulled.

The manifest of a model's folder, ``.pellucid.json``, has the source of the model, the size of each file in bytes, and
for each file a `FileRecord`: its SHA-256, and the metadata of the file when it was hashed. A file with unchanged
metadata counts as unmodified. If the metadata differ (the file was copied, restored, touched or damaged), the file is
hashed again, and the record is updated if the hash is right. Manifests of older versions have no records: the records
are added when the files are first hashed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock

from msgspec import Struct, field, to_builtins
from msgspec.structs import replace

from pellucid.errors import FileFormatError, reason
from pellucid.util.interpreter import run_apart
from pellucid.util.paths import is_file_name, move, staged
from pellucid.util.trusted_files import TrustedFolder
from pellucid.weights.checkpoint import Checkpoint, stored_bytes
from pellucid.weights.sources.source import CHECKING, DownloadProgress, Silent

MANIFEST = ".pellucid.json"
_CHUNK = 1 << 20
_PROGRESS_AFTER = 0.5  # seconds of hashing before progress is reported
# A file written just before it was hashed could be written again without a new modification time, within the same tick
# of the file system's clock.
_TICK = 20_000_000  # nanoseconds
_COARSE_TICK = 2_000_000_000  # for file systems with a resolution of one or two seconds


class FileRecord(Struct, frozen=True):
    """The state of a file when it was hashed: SHA-256, modification time, inode, and the time of hashing."""

    sha256: str
    mtime_ns: int
    inode: int
    checked_ns: int

    def fits(self, status: os.stat_result) -> bool:
        """True if the metadata ``status`` show that the file was not modified after it was hashed."""
        tick = _TICK if self.mtime_ns % 1_000_000_000 else _COARSE_TICK
        settled = self.mtime_ns + tick < self.checked_ns
        return settled and (self.mtime_ns, self.inode) == (status.st_mtime_ns, status.st_ino)


class Manifest(Struct, frozen=True):
    """The source of a model, its files with their sizes in bytes, and their records."""

    source: str
    files: Mapping[str, int]
    records: Mapping[str, FileRecord] = field(default_factory=dict)


class Checked(Struct, frozen=True):
    """The result of checking a file. ``sha256`` is None if it was not hashed, ``problem`` is None if it is intact."""

    name: str
    bytes: int
    sha256: str | None
    expected: str | None
    problem: str | None = None


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a model's folder; None if it is missing or invalid."""
    try:
        values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): int(size) for name, size in values["files"].items()}
        if not files or not all(map(is_file_name, files)):
            return None
        records = {
            str(name): FileRecord(
                bytes.fromhex(known["sha256"]).hex(), *(int(known[key]) for key in ("mtime_ns", "inode", "checked_ns"))
            )
            for name, known in values.get("records", {}).items()
        }
        return Manifest(str(values["source"]), files, records)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest atomically. Raises OSError."""
    with staged(folder, json.dumps(to_builtins(manifest), indent=1).encode()) as staging:
        os.chmod(staging, 0o644)
        move(staging, folder / MANIFEST)


def hash_file(path: Path, progress: DownloadProgress, label: str) -> tuple[str, FileRecord]:
    """The SHA-256 of a file, and its record. Raises OSError.

    If hashing takes long, ``progress`` is called with ``label``.
    """
    digest, hashed, report_after = hashlib.sha256(), 0, time.monotonic() + _PROGRESS_AFTER
    with open(path, "rb") as stream:
        status = os.fstat(stream.fileno())
        if 0 <= time.time_ns() - status.st_mtime_ns <= _TICK:
            time.sleep(2 * _TICK / 1e9)  # otherwise `fits` would not trust the record
        now = time.time_ns()
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            hashed += len(chunk)
            if time.monotonic() > report_after:
                progress.update(hashed, status.st_size, f"{CHECKING}{label}")
    return digest.hexdigest(), FileRecord(digest.hexdigest(), status.st_mtime_ns, status.st_ino, now)


def check(
    folder: Path,
    manifest: Manifest,
    known: Mapping[str, str],
    progress: DownloadProgress,
    *,
    all_files: bool,
    model: str = "",
) -> list[Checked]:
    """Check every file of a model, and update the manifest. Hashes the modified files, or all files if ``all_files``.

    ``known`` has hashes from the catalogue, by file. They take precedence over the recorded hashes. ``model`` is the
    model's name, by default the name of the folder.
    """
    results = list[Checked]()
    records = dict(manifest.records)
    writable = os.access(folder, os.W_OK)
    for name, size in manifest.files.items():
        problem: str | None = None
        record = records.get(name)
        expected = known.get(name) or (record.sha256 if record else None)
        try:
            status = os.stat(folder / name)
            if status.st_size != size:
                problem = f"has {status.st_size:,} bytes, expected {size:,}"
                results.append(Checked(name, status.st_size, None, expected, problem))
                continue
            fits = record is not None and record.fits(status) and record.sha256 == expected
            # In a folder without write access, a file without a record would be hashed at every use.
            if not all_files and (fits or (record is None and not writable)):
                results.append(Checked(name, size, None, expected))
                continue
            sha256, new_record = hash_file(folder / name, progress, f"{model or folder.name}/{name}")
        except OSError as error:
            results.append(Checked(name, 0, None, expected, reason(error)))
            continue
        if expected not in (None, sha256):
            problem = f"has SHA-256 {sha256[:12]}…, expected {expected[:12]}…"
        else:
            records[name] = new_record
        results.append(Checked(name, size, sha256, expected, problem))
    # If another process has pulled the model in the meantime, keep the manifest of that process.
    if records != manifest.records and writable and read_manifest(folder) == manifest:
        with contextlib.suppress(OSError):  # the file is then hashed again next time
            write_manifest(folder, replace(manifest, records=records))
    return results


# Hashes of a model: of its weights, configuration and tokenizer; and of the contents of its tensors alone.

# The files beside safetensors that can change an answer: configuration, tokenizer, chat template.
COMPANIONS = {".json", ".jinja", ".model", ".tiktoken", ".txt"}


def model_hash(checkpoint: Checkpoint, progress: DownloadProgress) -> str:
    """The SHA-256 (hexadecimal) of a model's files. The name of a GGUF file has no effect.

    A pulled model has hashes of its files in its manifest; other files are read. ``progress`` observes the reading.
    Raises FileFormatError: a file cannot be read.
    """
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    paths = {tensor.path for tensor in checkpoint.tensors.values()}
    one_file = checkpoint.kind == "gguf"  # a GGUF file has all parts of the model
    if not one_file:
        beside = [*folder.glob("*"), *folder.glob("*_Pooling/config.json")]
        paths |= {path for path in beside if path.suffix in COMPANIONS and path.name != MANIFEST and path.is_file()}
    digest, manifest = hashlib.sha256(), read_manifest(folder)
    for path in sorted(paths):
        name = Path(os.path.relpath(path, folder)).as_posix()
        record = manifest.records.get(name) if manifest else None
        try:
            known = record.sha256 if record and record.fits(os.stat(path)) else None
            file_hash = known or hash_file(path, progress, path.name)[0]
        except OSError as error:
            raise FileFormatError(path, "file", f"cannot be read: {reason(error)}") from error
        digest.update(f"{'' if one_file else name}\0{file_hash}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


# The hash of a model's weights: of the contents of its tensors, not of its file. The hash of a large file takes
# seconds, so it is kept under the file's path, size and times, and is computed again if the file changes.

FOLDER, MAX_FILES = "weight-hashes", 256
PIECE = 4 << 20  # bytes that are read at a time
WORKERS = 4
PROGRESS_AFTER = 0.5  # seconds before progress is reported
FRESH = 2.0
"""The hash of a file that changed less than FRESH seconds ago is not kept: a further change may have the same time."""


def tensor_hash(checkpoint: Checkpoint, progress: DownloadProgress | None = None) -> str:
    """SHA-256 (hexadecimal) of all tensors: of the name, format, shape and bytes of each, in order of the names.

    ``progress`` observes the reading. Raises FileFormatError: a file cannot be read, or was changed after it was
    opened.
    """
    facts = checkpoint.file_facts()
    checkpoint.check_unchanged()
    names = sorted(checkpoint.tensors)  # a checkpoint may be a part of its files
    place = hashlib.sha256(json.dumps([checkpoint.kind, facts, names]).encode("ascii")).hexdigest()
    folder = TrustedFolder(FOLDER)
    kept = folder.read(place, used=True)
    if kept is not None and len(kept) == 64:
        return kept.decode("ascii")
    found = run_apart(lambda check: _computed(checkpoint, progress or Silent(), check))
    checkpoint.check_unchanged()
    if facts and time.time() - max(fact[2] for fact in facts) / 1e9 > FRESH:
        folder.write(place, found.encode("ascii"), most=MAX_FILES)
    return found


def _computed(checkpoint: Checkpoint, progress: DownloadProgress, check: Callable[[], None] = lambda: None) -> str:
    tensors = sorted(checkpoint.tensors.items())
    total, done, lock, start = stored_bytes(checkpoint), 0, Lock(), time.monotonic()

    def advance(count: int) -> None:
        nonlocal done
        check()
        with lock:
            done += count
            if time.monotonic() - start > PROGRESS_AFTER:
                progress.update(done, total, f"{CHECKING}{checkpoint.path.name}")

    from concurrent.futures import ThreadPoolExecutor  # loading a model does not wait for it

    with ThreadPoolExecutor(WORKERS, "pellucid-hash") as pool:
        hashes = pool.map(lambda item: _of_tensor(checkpoint, item[0], advance), tensors)
        digest = hashlib.sha256()
        for (name, tensor), own in zip(tensors, hashes):
            digest.update(json.dumps([name, tensor.format, list(tensor.shape), own]).encode("ascii") + b"\n")
    return digest.hexdigest()


def _of_tensor(checkpoint: Checkpoint, name: str, advance: Callable[[int], None]) -> str:
    """SHA-256 (hexadecimal) of the bytes of a tensor."""
    import numpy as np  # commands that list models do not wait for it

    digest, size = hashlib.sha256(), checkpoint.tensors[name].nbytes
    buffer = np.empty(min(PIECE, size), np.uint8)
    for start in range(0, size, PIECE):
        part = buffer[: min(PIECE, size - start)]
        checkpoint.read(name, start, part)
        digest.update(part.data)
        advance(len(part))
    return digest.hexdigest()
