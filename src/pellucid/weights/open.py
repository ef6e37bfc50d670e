"""Opens a model of any format. The format is detected from the bytes of the file, not from its name."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

from pellucid.errors import FileFormatError, reason, shown
from pellucid.weights import refusals
from pellucid.weights.checkpoint import Checkpoint, ModelFile
from pellucid.weights.gguf import MAGIC, SPLIT_NAME, open_gguf
from pellucid.weights.json_files import check_body

TOKENIZER = re.compile(r"(tokenizer|tekken|vocab)\.json|vocab\.txt|.*\.(model|tiktoken)")
"""Names of files that a tokenizer can be read from."""
MAX_INSPECTED = 32
"""Maximum number of GGUF files in a folder whose metadata are read to find the model."""


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a model: a GGUF file (or any file of a split model), a safetensors file or its index, or a folder.

    A folder has one GGUF model, or safetensors with a ``config.json``. Raises `FileFormatError` if the path is
    missing, unreadable, of another kind, ambiguous or damaged.
    """
    try:
        # An absolute path, because messages have the name of the file, and "." has no name.
        path = Path(path).expanduser().absolute()
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
    from pellucid.weights.safetensors import INDEX_NAME, open_safetensors, with_joined_blocks

    # A safetensors file begins with the length of a JSON object, then the object.
    if path.name == INDEX_NAME or (size > 9 and head[8:9] == b"{"):
        return with_joined_blocks(open_safetensors(path))
    if head[:2] == b"PK" or head[:1] == b"\x80":
        problem = "is a PyTorch (pickle) or zip file; convert it to safetensors or GGUF: "
        problem += refusals.to_safetensors(path.parent.name)
        raise FileFormatError(path, "file", problem)
    raise FileFormatError(path, "file", f"begins with {head[:4]!r}: neither GGUF nor safetensors", 0)


def check_model(path: Path, *, tokenizer: bool = False) -> None:
    """Check that a path is a model; with ``tokenizer``, a tokenizer without weights is enough.

    Raises `FileFormatError` like `open_checkpoint`, also for a file that is no model, such as an adapter.
    """
    files = [path] if path.is_file() else [one for one in path.glob("*") if one.is_file()]
    weights = any(file.suffix in (".gguf", ".safetensors") for file in files)
    if tokenizer and not weights and any(TOKENIZER.fullmatch(file.name) for file in files):
        return
    checkpoint = open_checkpoint(path)
    try:
        refusals.refuse_companion(checkpoint)
    finally:
        checkpoint.close()


def _open_folder(folder: Path) -> Checkpoint:
    from pellucid.weights.safetensors import INDEX_NAME, weight_files

    try:
        os.listdir(folder)
        os.stat(os.path.join(folder, "."))  # a folder may allow listing but not opening
    except OSError as error:
        raise FileFormatError(folder, "folder", f"cannot be read: {reason(error)}") from error
    ggufs, others = gguf_models(folder), weight_files(folder)
    if ggufs and others:
        names = ", ".join(p.name for p in ggufs)
        raise FileFormatError(folder, "folder", f"holds GGUF ({names}) and safetensors: name the file to open")
    if ggufs:
        return open_gguf(_only_model(folder, ggufs))
    check_body(folder)
    if others or os.path.isfile(folder / INDEX_NAME):
        return _open_safetensors_folder(folder, others)
    if refusals.adapter_in(folder):
        raise refusals.adapter_alone(folder)
    if pickles := refusals.pickles_in(folder):
        problem = f"holds PyTorch (pickle) weights ({shown(pickles[0])}), which are not read: convert them to "
        problem += f"safetensors: {refusals.to_safetensors(folder.name)}"
        raise FileFormatError(folder, "folder", problem)
    problem = "holds no model: expected one .gguf file, or .safetensors files with a config.json"
    raise FileFormatError(folder, "folder", problem)


def _only_model(folder: Path, ggufs: list[Path]) -> Path:
    """The only model among the GGUF files of a folder. Warns about GGUF files that are not models."""
    if len(ggufs) == 1:
        return ggufs[0]
    kinds = {path: _kind(path) for path in ggufs[:MAX_INSPECTED]}
    models = [path for path in ggufs if not kinds.get(path)]
    if len(models) != 1:
        names = ", ".join(p.name for p in models or ggufs)
        raise FileFormatError(folder, "folder", f"holds {len(models)} GGUF models, name one: {names}")
    beside = ", ".join(f"{shown(path.name)} ({kind})" for path, kind in kinds.items() if kind)
    warnings.warn(f"{models[0].name}: ignored files in the same folder: {beside}", stacklevel=4)
    return models[0]


def _kind(path: Path) -> str:
    """The kind of a GGUF file that is not a model; "" for a model and for a file that cannot be read."""
    try:
        checkpoint = open_gguf(path)
    except FileFormatError:
        return ""
    checkpoint.close()
    return refusals.kind_of_gguf(checkpoint.metadata)


def _open_safetensors_folder(folder: Path, files: list[Path]) -> Checkpoint:
    """Open the model of a folder of safetensors. Warns about files that are not part of the model."""
    from pellucid.weights.safetensors import open_safetensors, with_joined_blocks

    if adapter := refusals.adapter_in(folder):
        raise FileFormatError(
            folder,
            "folder",
            f"holds an adapter beside the model ({adapter}), which is not applied: {refusals.MERGE}, or open the "
            "weights file itself, which runs the model without the adapter",
        )
    opened = open_safetensors(folder)
    unread = sorted(shown(path.name) for path in files if path not in opened.files)
    if unread:
        more = f" and {len(unread) - 4} more" if unread[4:] else ""
        warnings.warn(f"{folder.name}: ignored files in the same folder: {', '.join(unread[:4])}{more}", stacklevel=4)
    return with_joined_blocks(opened)


def gguf_models(folder: Path) -> list[Path]:
    """The GGUF files of a folder, sorted by name; only the first file of a split model."""
    models = []
    for path in sorted(folder.glob("*.gguf")):
        split = SPLIT_NAME.fullmatch(path.name)
        if split is None or int(split["number"]) == 1:
            models.append(path)
    return models
