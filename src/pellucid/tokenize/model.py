"""The model stage: pre-token → ids. One class a kind of vocabulary (``kinds/``) derives from this one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pellucid.tokenize.encoding import Span
from pellucid.tokenize.stages.pretokenize import Split

if TYPE_CHECKING:
    from pellucid.kernels.core.definitions import KernelKey
    from pellucid.tokenize.compiled.model import CompiledModel


class TokenizerModel(ABC):
    """One pre-token → ids, in Python; and where there is one, the compiled form of the same."""

    cut: Split | None = None
    """Splits pre-tokens further, where no id can span, so that the parts are remembered; None to leave them."""
    separates: bool = False
    """Whether the compiled form knows which characters no id can span, so that it cuts wherever ``cut`` would."""
    lost: frozenset[int] = frozenset()
    """Bytes that no id stands for: they vanish."""

    @property
    def kernel(self) -> KernelKey | None:
        """The kernel that ``compiled`` is based on; None: there is no compiled form."""
        return None

    @abstractmethod
    def __call__(self, piece: str) -> list[int]:
        """The ids of a pre-token."""

    @abstractmethod
    def spans(self, piece: str) -> list[Span]:
        """The ids with the characters of the piece that they stand for."""

    @abstractmethod
    def explain(self, piece: str) -> Mapping[str, Any]:
        """How the ids came about: the model's own words, as data that JSON can hold."""

    def compiled(self) -> CompiledModel:
        """The same as compiled code. Only where there is a ``kernel``."""
        raise NotImplementedError
