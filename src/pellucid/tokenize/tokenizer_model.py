"""The model stage: pre-token → ids. Each kind of vocabulary (``kinds/``) has one subclass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pellucid.errors import InvalidRequest, brief
from pellucid.tokenize.encoding import Span
from pellucid.tokenize.stages.pretokenize import Split

if TYPE_CHECKING:
    from pellucid.kernels.core.definitions import KernelKey
    from pellucid.tokenize.compiled.compiled_pipeline import CompiledModel


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
