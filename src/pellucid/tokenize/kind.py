"""A kind of vocabulary: what a file of ``kinds/`` declares, and how the kinds are found.

A kind is a model stage and what builds it from each file format that can hold one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pellucid.tokenize.files.gguf_fields import GGUFFields
from pellucid.tokenize.files.sentencepiece import ModelBuilder
from pellucid.tokenize.files.sidecar import Sidecar
from pellucid.tokenize.files.tokenizer_json import JsonModelReader
from pellucid.tokenize.tokenizer import Tokenizer
from pellucid.util.registry import discover


@dataclass(frozen=True)
class Kind:
    """A kind of vocabulary, by the names that files give it.

    ``gguf``: by ``tokenizer.ggml.model``; ``json``: the reader of a ``tokenizer.json`` model; ``sentencepiece``: by
    ``model_type`` of a SentencePiece file; ``classes``: by the tokenizer class of ``transformers``, for models that
    need no vocabulary file.
    """

    name: str
    gguf: Mapping[str, Callable[[GGUFFields], Tokenizer]] = field(default_factory=dict)
    json: JsonModelReader | None = None
    sentencepiece: Mapping[int, ModelBuilder] = field(default_factory=dict)
    classes: Mapping[str, Callable[[Path, Sidecar], Tokenizer]] = field(default_factory=dict)


KINDS = "pellucid.tokenize.kinds"


@functools.cache
def known_kinds() -> Mapping[str, Kind]:
    """Every kind in the folder, by name.

    Raises:
        TypeError: two files declare one kind, or one name of a file format.
    """
    discover(KINDS, Kind, lambda kind: (*kind.gguf, *map(str, kind.sentencepiece), *kind.classes))
    return discover(KINDS, Kind, lambda kind: (kind.name,))


def json_models() -> list[JsonModelReader]:
    """The readers of the models of ``tokenizer.json`` files."""
    return [kind.json for kind in known_kinds().values() if kind.json is not None]


def sentencepiece_models() -> dict[int, ModelBuilder]:
    """The builders of the models of SentencePiece files, by ``model_type``."""
    return {number: build for kind in known_kinds().values() for number, build in kind.sentencepiece.items()}
