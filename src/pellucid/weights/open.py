"""Opens a model of any format. The bytes decide which one it is, not the name."""

from __future__ import annotations

import os
from pathlib import Path

from pellucid.errors import FileFormatError
from pellucid.errors.messages import reason
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.files import ModelFile
from pellucid.weights.gguf import MAGIC, SPLIT_NAME, open_gguf
from pellucid.weights.joined import joined
from pellucid.weights.safetensors import INDEX_NAME, open_safetensors


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a model: a GGUF file (or any file of a split one), a safetensors file or its index, or a folder.

    A folder holds one GGUF model, or safetensors with a ``config.json``. Raises `FileFormatError` if the path is
    missing, unreadable, of another kind, ambiguous or damaged.
    """
    try:
        path = Path(path).expanduser().absolute()  # messages name the file, and "." has no name
    except RuntimeError as error:  # ~ of an unknown user
        raise FileFormatError(path, "file", f"cannot be read: {reason(error)}") from error
    if os.path.isdir(path):
        return _open_folder(path)
    file = ModelFile(path)
    try:
        head, size = file.read(0, min(9, file.size)), file.size
    finally:
        file.close()
    if head[:4] == MAGIC:
        return open_gguf(path)
    # A safetensors file begins with the length of a JSON object, then that object.
    if path.name == INDEX_NAME or (size > 9 and head[8:9] == b"{"):
        return joined(open_safetensors(path))
    if head[:2] == b"PK" or head[:1] == b"\x80":
        raise FileFormatError(
            path, "file", "is a PyTorch (pickle) or zip file; convert it to safetensors or GGUF"
        )
    raise FileFormatError(path, "file", f"begins with {head[:4]!r}: neither GGUF nor safetensors", 0)


def _open_folder(folder: Path) -> Checkpoint:
    try:
        os.listdir(folder)
        os.stat(os.path.join(folder, "."))  # a folder may allow listing but not opening
    except OSError as error:
        raise FileFormatError(folder, "folder", f"cannot be read: {reason(error)}") from error
    ggufs, others = gguf_models(folder), sorted(folder.glob("*.safetensors"))
    if ggufs and others:
        names = ", ".join(p.name for p in ggufs)
        raise FileFormatError(
            folder, "folder", f"holds GGUF ({names}) and safetensors: name the file to open"
        )
    if len(ggufs) > 1:
        names = ", ".join(p.name for p in ggufs)
        raise FileFormatError(folder, "folder", f"holds {len(ggufs)} GGUF models, name one: {names}")
    if ggufs:
        return open_gguf(ggufs[0])
    if others or os.path.isfile(folder / INDEX_NAME):
        return joined(open_safetensors(folder))
    problem = "holds no model: expected one .gguf file, or .safetensors files with a config.json"
    raise FileFormatError(folder, "folder", problem)


def gguf_models(folder: Path) -> list[Path]:
    """The GGUF models of a folder, by name; a split model is given as its first file."""
    found = []
    for path in sorted(folder.glob("*.gguf")):
        split = SPLIT_NAME.fullmatch(path.name)
        if split is None or int(split["number"]) == 1:
            found.append(path)
    return found
