"""From an opened model to its tokenizer.

In: a :class:`Checkpoint`, or a path. Out: a :class:`Tokenizer`. A GGUF file holds its tokenizer in its metadata; a
folder holds it in files beside the weights (``folder.py``). The kinds are the files in ``kinds/``.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING

from pellucid.errors import FileFormatError, UnsupportedModel
from pellucid.messages import brief, reason
from pellucid.tokenize import kinds
from pellucid.tokenize.gguf import Fields

if TYPE_CHECKING:
    from pellucid.tokenize.base import Tokenizer
    from pellucid.weights.checkpoint import Checkpoint


@cache
def known_kinds() -> dict[str, ModuleType]:
    """The modules of ``kinds/`` by name."""
    return {
        found.name: import_module(f"{kinds.__name__}.{found.name}")
        for found in sorted(iter_modules(kinds.__path__), key=lambda found: found.name)
    }


def load_tokenizer(source: Checkpoint | Path | str) -> Tokenizer:
    """The tokenizer of an opened model; or of a path: a folder, a file of weights, or a tokenizer's own file.

    Text is a path, or a model's name as for ``pellucid.load``.

    Raises :class:`FileFormatError` when the file contradicts itself, :class:`UnsupportedModel` when it asks for
    something that is not implemented; the message lists what is.
    """
    from pellucid.tokenize.folder import load_path

    if isinstance(source, str):
        from pellucid.weights.store import resolve

        source = resolve(source)
    if isinstance(source, Path):
        path = source.expanduser().absolute()
        if not _holds_gguf(path):
            return load_path(path)
        from pellucid.weights.open import open_checkpoint

        source = open_checkpoint(path)
    if source.kind != "gguf":
        return load_path(source.path)
    fields = Fields(source.path, source.metadata)
    name = fields.get("ggml.model", str)
    if name is None:
        raise FileFormatError(source.path, "tokenizer.ggml.model", "missing: the file has no tokenizer")
    by_name = {m.GGUF_MODEL: m for m in known_kinds().values() if hasattr(m, "GGUF_MODEL")}
    if name not in by_name:
        raise UnsupportedModel(
            f"tokenizer.ggml.model {brief(name)} is not known; known are {', '.join(sorted(by_name))}"
        )
    tokenizer: Tokenizer = by_name[name].from_gguf(fields)
    return tokenizer


def _holds_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file, or a folder that has one and no tokenizer beside it."""
    from pellucid.tokenize.folder import tokenizer_files

    if path.is_dir():
        return not tokenizer_files(path) and any(path.glob("*.gguf"))
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise FileFormatError(path, "file", f"cannot be read: {reason(error)}") from error
