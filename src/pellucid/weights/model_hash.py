"""A hash of a model: of its weights, its configuration and its tokenizer."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pellucid.errors import FileFormatError
from pellucid.errors.messages import reason
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.manifest import MANIFEST, hash_file, read_manifest
from pellucid.weights.sources.source import DownloadProgress

# The files beside safetensors that can change an answer: configuration, tokenizer, chat template.
COMPANIONS = {".json", ".jinja", ".model", ".tiktoken", ".txt"}


def model_hash(checkpoint: Checkpoint, progress: DownloadProgress) -> str:
    """The SHA-256 (hexadecimal) of a model's files. The name of a GGUF file has no effect.

    A pulled model has hashes of its files in its manifest; other files are read. ``progress`` observes the reading.

    Raises:
        FileFormatError: a file cannot be read.
    """
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    paths = {tensor.path for tensor in checkpoint.tensors.values()}
    one_file = checkpoint.kind == "gguf"  # a GGUF file has all parts of the model
    if not one_file:
        beside = [*folder.glob("*"), *folder.glob("*_Pooling/config.json")]
        paths |= {
            path for path in beside if path.suffix in COMPANIONS and path.name != MANIFEST and path.is_file()
        }
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
