"""The kinds of vocabulary that the files in ``kinds/`` declare, and their discovery.

A kind is a model stage, with a builder for each file format that can contain it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from msgspec import Struct, field

from pellucid.util.registry import discover, find

if TYPE_CHECKING:
    from pellucid.tokenize.files.gguf_fields import GGUFFields
    from pellucid.tokenize.files.json_model import JsonModelReader
    from pellucid.tokenize.files.sentencepiece import ModelBuilder
    from pellucid.tokenize.files.sidecar import Sidecar
    from pellucid.tokenize.tokenizer import Tokenizer

    GGUFReader: TypeAlias = Callable[[GGUFFields], Tokenizer]


class Kind(Struct, frozen=True):
    """A kind of vocabulary: its builders, by the names that files use.

    ``gguf`` maps a value of ``tokenizer.ggml.model`` to a builder. ``gguf_pre`` maps a value of ``tokenizer.ggml.pre``
    to a builder, for files that state the model of byte-level BPE. ``json`` is the reader of a ``tokenizer.json``
    model. ``sentencepiece`` maps the ``model_type`` of a SentencePiece file to a builder. ``classes`` maps a
    ``transformers`` tokenizer class to a builder, for models that need no vocabulary file.
    """

    name: str
    gguf: Mapping[str, GGUFReader] = field(default_factory=dict)
    gguf_pre: Mapping[str, GGUFReader] = field(default_factory=dict)
    json: JsonModelReader | None = None
    sentencepiece: Mapping[int, ModelBuilder] = field(default_factory=dict)
    classes: Mapping[str, Callable[[Path, Sidecar], Tokenizer]] = field(default_factory=dict)


KINDS = "pellucid.tokenize.kinds"


@functools.cache
def known_kinds() -> Mapping[str, Kind]:
    """Every kind in ``kinds/``, by name.

    Raises TypeError: two files declare the same kind, or the same name in a file format.
    """
    discover(KINDS, Kind, lambda kind: (*kind.gguf, *kind.gguf_pre, *map(str, kind.sentencepiece), *kind.classes))
    return discover(KINDS, Kind, lambda kind: (kind.name,))


@functools.lru_cache(maxsize=64)
def gguf_reader(name: str) -> GGUFReader | None:
    """The builder for a ``tokenizer.ggml.model``, or None."""
    kind = find(KINDS, Kind, lambda kind: tuple(kind.gguf), name)
    return None if kind is None else kind.gguf[name]


def known_pre() -> Mapping[str, GGUFReader]:
    """The builders of ``gguf_pre`` of all kinds."""
    return {pre: build for kind in known_kinds().values() for pre, build in kind.gguf_pre.items()}


def json_models() -> list[JsonModelReader]:
    """The readers of ``tokenizer.json`` models."""
    return [kind.json for kind in known_kinds().values() if kind.json is not None]


def sentencepiece_models() -> dict[int, ModelBuilder]:
    """The builders of SentencePiece models, by ``model_type``."""
    return {number: build for kind in known_kinds().values() for number, build in kind.sentencepiece.items()}
