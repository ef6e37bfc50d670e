"""``Family``, the declaration of a family of models, and the discovery of the files in ``families/``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from msgspec import Struct, field

from pellucid.model.config import Config
from pellucid.model.weight_map import Model
from pellucid.util.registry import discover, find
from pellucid.weights.checkpoint import Checkpoint

Reader: TypeAlias = Callable[[Checkpoint, Config], Model]
FAMILIES = "pellucid.model.families"


class Family(Struct, frozen=True):
    """A family of models: its name, and its readers by architecture.

    ``gguf`` maps each ``general.architecture`` to its reader, ``safetensors`` each ``model_type`` of ``config.json``.
    ``unused`` lists patterns of the names of tensors that files may have but no slot needs: tables that Pellucid
    computes, and the pooler of BERT, which only classification heads read. ``skipped`` lists patterns of the names of
    tensors of parts that Pellucid does not load. A warning reports skipped tensors.

    `pellucid.testing` uses the other fields to write random models. ``keys`` maps names of dimensions ("width") to keys
    of config.json, where the family's key differs from the key of most families. Commas join keys with the same value.
    ``biases`` lists the bias tensors of a typical GGUF file. No metadata states the biases: readers detect them by the
    presence of the tensors. ``pattern`` is the repeating pattern of layer types of a typical model;
    ``keys["pattern"]`` is its key in config.json. If ``kv_by_layer`` is true, GGUF files state the number of key/value
    heads of each layer, 0 for layers without attention. ``gguf_usual`` maps GGUF keys to the only value that the reader
    accepts.
    """

    name: str
    gguf: Mapping[str, Reader] = field(default_factory=dict)
    safetensors: Mapping[str, Reader] = field(default_factory=dict)
    unused: Sequence[str] = ()
    skipped: Sequence[str] = ()
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
    """All families of the folder by name.

    Raises:
        TypeError: two files declare the same family.
    """
    return discover(FAMILIES, Family, lambda family: (family.name,))


@functools.cache
def architectures(kind: str) -> Mapping[str, Family]:
    """The family of each architecture, for a kind of file, "gguf" or "safetensors".

    Raises:
        TypeError: two families read the same architecture.
    """
    return discover(FAMILIES, Family, lambda family: tuple(family.readers(kind)))


@functools.lru_cache(maxsize=64)
def family_of(architecture: str, kind: str) -> Family | None:
    """The family of an architecture for a kind of file; None if the architecture is not known."""
    return find(FAMILIES, Family, lambda family: tuple(family.readers(kind)), architecture)
