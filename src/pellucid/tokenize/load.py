"""Loads the tokenizer of a model.

In: a :class:`Checkpoint`, or a path. Out: a :class:`Tokenizer`. The tokenizer of a GGUF file is in its metadata. The
tokenizer of a model folder is in files next to the weights (``model_folder.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pellucid.errors import FileFormatError, UnsupportedModel
from pellucid.errors.messages import brief, reason
from pellucid.tokenize.files.gguf_fields import GGUFFields
from pellucid.tokenize.kind import gguf_reader, known_kinds

if TYPE_CHECKING:
    from pellucid.tokenize.tokenizer import Tokenizer
    from pellucid.weights.checkpoint import Checkpoint


def load_tokenizer(source: Checkpoint | Path | str) -> Tokenizer:
    """Load the tokenizer of an opened model, or of a path: a model folder, a weights file or a tokenizer file.

    A string is a path, or a model's name as for ``pellucid.load``.

    Raises :class:`FileFormatError` if the file contradicts itself, :class:`UnsupportedModel` if it needs a feature that
    is not implemented; the message lists the implemented choices.
    """
    if isinstance(source, str):
        from pellucid.weights.store import resolve

        source = resolve(source)
    if isinstance(source, Path):
        path = source.expanduser().absolute()
        if not _holds_gguf(path):
            return _load_files(path)
        from pellucid.weights.open import open_checkpoint

        source = open_checkpoint(path)
    if source.kind != "gguf":
        return _load_files(source.path)
    fields = GGUFFields(source.path, source.metadata)
    name = fields.get("ggml.model", str)
    if name is None:
        raise fields.wrong("model", "missing: the file has no tokenizer")
    read = gguf_reader(name)
    if read is None:
        known = ", ".join(sorted(name for kind in known_kinds().values() for name in kind.gguf))
        raise UnsupportedModel(f"tokenizer.ggml.model {brief(name)} is not known; known are {known}")
    return read(fields)


def _load_files(path: Path) -> Tokenizer:
    """The tokenizer of files other than GGUF. Their readers are imported here, because the import takes 5 ms."""
    from pellucid.tokenize.model_folder import load_path

    return load_path(path)


def _holds_gguf(path: Path) -> bool:
    """True if a path is a GGUF file, or a folder with a GGUF file and no tokenizer file."""
    if path.is_dir():
        from pellucid.tokenize.model_folder import tokenizer_files

        return not tokenizer_files(path) and any(path.glob("*.gguf"))
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise FileFormatError(path, "file", f"cannot be read: {reason(error)}") from error
