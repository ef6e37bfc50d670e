"""A family of models: what a file of ``families/`` declares, and the discovery of these files."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from msgspec import Struct, field

from pellucid.model.config import Config
from pellucid.model.filled import Model
from pellucid.util.registry import discover, find
from pellucid.weights.checkpoint import Checkpoint

Reader: TypeAlias = Callable[[Checkpoint, Config], Model]
FAMILIES = "pellucid.model.families"


class Family(Struct, frozen=True):
    """A family of models: its name, and its readers by the name of the architecture in the file.

    That name is ``general.architecture`` for ``gguf`` and ``model_type`` of ``config.json`` for ``safetensors``.
    ``unused`` are patterns of tensors that a file may hold and that no slot needs: tables that are computed here, and
    the pooler of BERT, whose vector only heads see. ``passed_over`` are patterns of tensors of parts that are left out;
    a line says so.

    The others are for `pellucid.testing`. ``keys`` are the keys of config.json by dimension ("width") that are not the
    usual ones, and ``biases`` the tensors of GGUF files by which a reader sees that there are biases, where that is
    usual. ``pattern`` are the kinds of layers of a usual model, which repeat, under the key "pattern" of config.json;
    with ``kv_by_layer`` GGUF states the number of key/value heads of each layer, which is 0 without attention.
    ``gguf_usual`` are metadata of GGUF that the reader takes with this value alone.
    """

    name: str
    gguf: Mapping[str, Reader] = field(default_factory=dict)
    safetensors: Mapping[str, Reader] = field(default_factory=dict)
    unused: Sequence[str] = ()
    passed_over: Sequence[str] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    biases: Sequence[str] = ()
    pattern: Sequence[str] = ()
    kv_by_layer: bool = False
    gguf_usual: Mapping[str, int] = field(default_factory=dict)

    def readers(self, kind: str) -> Mapping[str, Reader]:
        """The readers for a kind of checkpoint, "gguf" or "safetensors"."""
        return self.gguf if kind == "gguf" else self.safetensors


@functools.cache
def known_families() -> Mapping[str, Family]:
    """Every family in the folder, by name.

    Raises:
        TypeError: two files declare the same family.
    """
    return discover(FAMILIES, Family, lambda family: (family.name,))


@functools.cache
def architectures(kind: str) -> Mapping[str, Family]:
    """The family of each architecture, for one kind of file, "gguf" or "safetensors".

    Raises:
        TypeError: two families read the same architecture.
    """
    return discover(FAMILIES, Family, lambda family: tuple(family.readers(kind)))


@functools.lru_cache(maxsize=64)
def family_of(architecture: str, kind: str) -> Family | None:
    """The family of an architecture, for one kind of file, or None."""
    return find(FAMILIES, Family, lambda family: tuple(family.readers(kind)), architecture)
