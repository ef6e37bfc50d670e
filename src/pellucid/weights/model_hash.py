"""Hashes of a model: of its weights, configuration and tokenizer; and of the contents of its tensors alone."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np

from pellucid.errors import FileFormatError
from pellucid.errors.messages import reason
from pellucid.util.interpreter import run_apart
from pellucid.util.trusted_files import TrustedFolder
from pellucid.weights.checkpoint import Checkpoint, stored_bytes
from pellucid.weights.manifest import MANIFEST, hash_file, read_manifest
from pellucid.weights.sources.source import CHECKING, DownloadProgress, Silent

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

    with ThreadPoolExecutor(WORKERS, "pellucid-hash") as pool:
        hashes = pool.map(lambda item: _of_tensor(checkpoint, item[0], advance), tensors)
        digest = hashlib.sha256()
        for (name, tensor), own in zip(tensors, hashes):
            digest.update(json.dumps([name, tensor.format, list(tensor.shape), own]).encode("ascii") + b"\n")
    return digest.hexdigest()


def _of_tensor(checkpoint: Checkpoint, name: str, advance: Callable[[int], None]) -> str:
    """SHA-256 (hexadecimal) of the bytes of a tensor."""
    digest, size = hashlib.sha256(), checkpoint.tensors[name].nbytes
    buffer = np.empty(min(PIECE, size), np.uint8)
    for start in range(0, size, PIECE):
        part = buffer[: min(PIECE, size - start)]
        checkpoint.read(name, start, part)
        digest.update(part.data)
        advance(len(part))
    return digest.hexdigest()
