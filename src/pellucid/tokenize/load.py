"""From an opened model to its tokenizer.

In: a :class:`Checkpoint`. Out: a :class:`Tokenizer`. A GGUF file holds its tokenizer in its metadata; a folder
holds it in ``tokenizer.json`` or ``vocab.txt`` beside the weights. The kinds are the files in ``kinds/``.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING

from pellucid.errors import FileFormatError, UnsupportedModel
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


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a model.

    Raises :class:`FileFormatError` when the file contradicts itself, :class:`UnsupportedModel` when it asks for
    something that is not implemented; the message lists what is.
    """
    if checkpoint.kind != "gguf":
        from pellucid.tokenize.huggingface import load_folder

        return load_folder(checkpoint.path)
    fields = Fields(checkpoint.path, checkpoint.metadata)
    name = fields.get("ggml.model", str)
    if name is None:
        raise FileFormatError(checkpoint.path, "tokenizer.ggml.model", "missing: the file has no tokenizer")
    by_name = {m.GGUF_MODEL: m for m in known_kinds().values() if hasattr(m, "GGUF_MODEL")}
    if name not in by_name:
        raise UnsupportedModel(
            f"tokenizer.ggml.model {name!r} is not known; known are {', '.join(sorted(by_name))}"
        )
    tokenizer: Tokenizer = by_name[name].from_gguf(fields)
    return tokenizer
