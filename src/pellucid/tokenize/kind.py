"""The kinds of vocabulary: their model stage, pre-token → ids, and the discovery of the files in ``kinds/``."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from msgspec import Struct, field

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.tokenize.encoding import Span
from pellucid.tokenize.stages.pretokenize import Split
from pellucid.util.registry import discover, find

if TYPE_CHECKING:
    from pellucid.kernels.core.definitions import KernelKey
    from pellucid.tokenize.compiled.compiled_pipeline import CompiledModel
    from pellucid.tokenize.files.gguf_fields import GGUFFields
    from pellucid.tokenize.files.sentencepiece import ModelBuilder
    from pellucid.tokenize.files.sidecar import Sidecar
    from pellucid.tokenize.files.tokenizer_json import TokenizerJson
    from pellucid.tokenize.stages.pretokenize import Stage
    from pellucid.tokenize.tokenizer import Tokenizer

    GGUFReader: TypeAlias = Callable[[GGUFFields], Tokenizer]

# The model stage: pre-token → ids. Each kind of vocabulary (``kinds/``) has one subclass.


def without_token(text: str) -> InvalidRequest:
    """The error for a text without a piece, if the vocabulary has no unknown token."""
    return InvalidRequest(f"{brief(text)} has no token, and the vocabulary has no unknown token: remove this text")


class TokenizerModel(ABC):
    """Turns one pre-token into ids, in Python; some kinds also have a compiled form."""

    cut: Split | None = None
    """Splits pre-tokens at positions that no id spans, so that the parts can be cached. None: no split."""
    separates: bool = False
    """True if the compiled form cuts wherever no id spans two adjacent characters, so that it does not need ``cut``."""
    spells_bytes: bool = False
    """True if the model, and not the pre-tokenizer, spells text in the byte alphabet (``stages/decode.py``)."""
    lost: frozenset[int] = frozenset()
    """Bytes without an id. The model drops them."""

    @property
    def drops(self) -> bool:
        """True if text without an id is dropped, which shifts all later offsets of its pre-token."""
        return bool(self.lost)

    @property
    def kernel(self) -> KernelKey | None:
        """The kernel of the compiled form, or None if there is no compiled form."""
        return None

    def __call__(self, pre_token: str) -> list[int]:
        """The ids of a pre-token."""
        return [index for index, _, _ in self.spans(pre_token)]

    @abstractmethod
    def spans(self, pre_token: str) -> list[Span]:
        """The ids, each with the characters of the pre-token that it covers."""

    @abstractmethod
    def explain(self, pre_token: str) -> Mapping[str, Any]:
        """A record of how the model found the ids, specific to the model, as JSON-compatible data."""

    def compiled(self) -> CompiledModel:
        """The compiled form. Call it only if ``kernel`` is not None."""
        raise NotImplementedError


# ``JsonModelReader``, which a kind of vocabulary declares, apart from the reader of the file that it needs.


class JsonModelReader(Struct, frozen=True):
    """The reader of the models of one ``type`` in a ``tokenizer.json``.

    ``claims`` distinguishes kinds of vocabulary that share a type. It takes the file and the stages of its
    pre-tokenizer, and returns True for a file of its kind.
    """

    type: str
    build: Callable[[TokenizerJson], TokenizerModel]
    claims: Callable[[TokenizerJson, Sequence[Stage]], bool] = lambda *_: True


# The kinds of vocabulary that the files in ``kinds/`` declare, and their discovery.
#
# A kind is a model stage, with a builder for each file format that can contain it.


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

    Raises:
        TypeError: two files declare the same kind, or the same name in a file format.
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
