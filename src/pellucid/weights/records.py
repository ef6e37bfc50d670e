"""What is known of the files of a stored model, and whether they still are what was pulled.

The manifest of a model's folder, ``.pellucid.json``, says where the model came from, how many bytes each file has, and
for each a `Record`: its SHA-256, and by what one can tell at a glance that nobody has written to it since. A file that
looks otherwise (it was copied, restored, touched, or damaged) is hashed again. If the hash is right, the record is
brought up to date. A manifest of a version that had no records gets them when its files are hashed the first time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath

from pellucid.errors.messages import reason
from pellucid.util.paths import staged
from pellucid.weights.sources.source import CHECKING, DownloadProgress

MANIFEST = ".pellucid.json"
_CHUNK = 1 << 20
_QUIET = 0.5  # seconds of hashing before anyone is told
# A file that was written to just before it was hashed could be written to again within the same tick of its clock.
_TICK = 20_000_000  # nanoseconds
_COARSE_TICK = 2_000_000_000  # of file systems that only know whole seconds, or two


@dataclass(frozen=True)
class FileRecord:
    """What a file was when it was hashed: SHA-256, modification time, inode; and when that was."""

    sha256: str
    mtime_ns: int
    inode: int
    checked_ns: int

    def fits(self, status: os.stat_result) -> bool:
        """Whether nobody has written to the file since, as far as one can tell without hashing it."""
        tick = _TICK if self.mtime_ns % 1_000_000_000 else _COARSE_TICK
        settled = self.mtime_ns + tick < self.checked_ns
        return settled and (self.mtime_ns, self.inode) == (status.st_mtime_ns, status.st_ino)


@dataclass(frozen=True)
class Manifest:
    """Where a model came from, its files with their sizes in bytes, and what is recorded of them."""

    source: str
    files: Mapping[str, int]
    records: Mapping[str, FileRecord] = field(default_factory=dict)


@dataclass(frozen=True)
class Checked:
    """A file of a model after a look at it: ``sha256`` as found, None if it was not hashed; ``problem``, or None."""

    name: str
    bytes: int
    sha256: str | None
    expected: str | None
    problem: str | None = None


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a model's folder; None if there is none that makes sense."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): int(size) for name, size in found["files"].items()}
        if not files or any(".." in PurePosixPath(n).parts or PurePosixPath(n).is_absolute() for n in files):
            return None
        records = {
            str(name): FileRecord(
                bytes.fromhex(known["sha256"]).hex(),
                *(int(known[key]) for key in ("mtime_ns", "inode", "checked_ns")),
            )
            for name, known in found.get("records", {}).items()
        }
        return Manifest(str(found["source"]), files, records)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest at once. Raises OSError."""
    with staged(folder, json.dumps(asdict(manifest), indent=1).encode()) as staging:
        os.chmod(staging, 0o644)
        os.replace(staging, folder / MANIFEST)


def hash_file(path: Path, progress: DownloadProgress, label: str) -> tuple[str, FileRecord]:
    """The SHA-256 of a file, and the record for it. Raises OSError.

    ``progress`` hears of it, under ``label``, if it takes long.
    """
    digest, done, told = hashlib.sha256(), 0, time.monotonic() + _QUIET
    with open(path, "rb") as stream:
        status = os.fstat(stream.fileno())
        if 0 <= time.time_ns() - status.st_mtime_ns <= _TICK:
            time.sleep(2 * _TICK / 1e9)  # else the record would not be settled
        now = time.time_ns()
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if time.monotonic() > told:
                progress.update(done, status.st_size, f"{CHECKING}{label}")
    return digest.hexdigest(), FileRecord(digest.hexdigest(), status.st_mtime_ns, status.st_ino, now)


def check(
    folder: Path,
    manifest: Manifest,
    known: Mapping[str, str],
    progress: DownloadProgress,
    *,
    whole: bool,
    model: str = "",
) -> list[Checked]:
    """Look at every file of a model, hash those that were written to, all of them if ``whole``; update the manifest.

    ``known`` are hashes that come from elsewhere, by file; they count more than those recorded. ``model`` is what the
    model is called, if not as its folder.
    """
    found = list[Checked]()
    records = dict(manifest.records)
    writable = os.access(folder, os.W_OK)
    for name, size in manifest.files.items():
        record = records.get(name)
        expected = known.get(name) or (record.sha256 if record else None)
        try:
            status = os.stat(folder / name)
            if status.st_size != size:
                problem = f"has {status.st_size:,} bytes, expected {size:,}"
                found.append(Checked(name, status.st_size, None, expected, problem))
                continue
            fits = record is not None and record.fits(status) and record.sha256 == expected
            # Where nothing can be recorded, a file without a record would be hashed again and again.
            if not whole and (fits or (record is None and not writable)):
                found.append(Checked(name, size, None, expected))
                continue
            sha256, made = hash_file(folder / name, progress, f"{model or folder.name}/{name}")
        except OSError as error:
            found.append(Checked(name, 0, None, expected, reason(error)))
            continue
        wrong = None
        if expected not in (None, sha256):
            wrong = f"has SHA-256 {sha256[:12]}…, expected {expected[:12]}…"
        else:
            records[name] = made
        found.append(Checked(name, size, sha256, expected, wrong))
    # Another process may have pulled the model again meanwhile: its manifest stays.
    if records != manifest.records and writable and read_manifest(folder) == manifest:
        with contextlib.suppress(OSError):  # it is then hashed again the next time
            write_manifest(folder, replace(manifest, records=records))
    return found
