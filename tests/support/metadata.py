"""Checkpoints with editable metadata and tensor table, and a tiny GGUF of each architecture."""

from __future__ import annotations

import copy
import functools
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pellucid import pipeline
from pellucid.model.family import architectures
from pellucid.model.read import read_model
from pellucid.model.weight_map import Model
from pellucid.plan.bind import layouts
from pellucid.testing import random_model
from pellucid.weights.checkpoint import Tensor
from pellucid.weights.open import open_checkpoint
from support.tiny import LLAMA_GGUF, LLAMA_GGUF_SHAPES, TINY


class Metadata:
    """A checkpoint without data. Tests change its metadata and tensor table in memory."""

    def __init__(self, path: Path, kind: str = "", metadata: Any = None, tensors: Any = None) -> None:
        self.kind, self.path, self.metadata, self.tensors = kind, path, metadata, tensors

    @classmethod
    def of(cls, path: Path) -> Metadata:
        """Metadata and tensor table of a file or folder. Tiny models are read once, because no test changes them."""
        return (_read_once if path in NEVER_CHANGED else _read)(path).changed()

    def changed(self, **changes: Any) -> Metadata:
        """A copy with changed metadata. ``a__b`` is the key b of the table a."""
        made = Metadata(self.path, self.kind, copy.deepcopy(self.metadata), dict(self.tensors))
        for name, value in changes.items():
            *tables, key = name.split("__")
            inner = made.metadata
            for table in tables:
                inner = inner[table]
            inner[key] = value
        return made

    def data(self, name: str) -> Any:
        raise AssertionError("reading a configuration reads no weights")

    def close(self) -> None: ...

    def read(self) -> Model:
        return read_model(self)

    def lower(self) -> None:
        """Run every part of loading that precedes the allocation of memory."""
        model = self.read()
        pipeline.build_plan(model.spec, layouts(self, model))


NEVER_CHANGED = frozenset(TINY.values())


def _read(path: Path) -> Metadata:
    checkpoint = open_checkpoint(path)
    try:
        return Metadata(checkpoint.path, checkpoint.kind, dict(checkpoint.metadata), dict(checkpoint.tensors))
    finally:
        checkpoint.close()


_read_once = functools.cache(_read)


GEMMA3_GGUF: dict[str, Any] = {
    **{key.replace("llama.", "gemma3."): value for key, value in LLAMA_GGUF.items()},
    "general.architecture": "gemma3",
    "gemma3.attention.sliding_window": 8,
    "gemma3.attention.key_length": 16,
    "gemma3.attention.value_length": 16,
    "gemma3.block_count": 6,
}
GEMMA3_GGUF_SHAPES = {
    **{name: shape for name, shape in LLAMA_GGUF_SHAPES.items() if not name.startswith("blk.")},
    **{
        f"blk.{i}.{name.removeprefix('blk.0.')}": shape
        for i in range(6)
        for name, shape in {
            **LLAMA_GGUF_SHAPES,
            **{f"blk.0.{norm}.weight": (32,) for norm in ("post_attention_norm", "post_ffw_norm")},
            **{f"blk.0.attn_{part}_norm.weight": (16,) for part in "qk"},
        }.items()
        if name.startswith("blk.0.")
    },
}


def as_gguf(metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Metadata:
    """A GGUF checkpoint that exists only in memory."""
    path = Path("tiny.gguf")
    tensors = {n: Tensor(n, s, "F32", path, 0, 4 * int(np.prod(s))) for n, s in shapes.items()}
    return Metadata(path, "gguf", copy.deepcopy(metadata), tensors)


@functools.cache
def _planned(architecture: str) -> Metadata:
    with TemporaryDirectory() as folder:
        return Metadata.of(random_model(architecture, Path(folder) / "tiny.gguf", vocabulary=320))


def random_gguf(architecture: str) -> Metadata:
    """A random GGUF of an architecture, made by `pellucid.testing`."""
    return _planned(architecture).changed()


GGUF = {name: partial(random_gguf, name) for name in sorted(architectures("gguf"))}
GGUF["llama"] = partial(as_gguf, LLAMA_GGUF, LLAMA_GGUF_SHAPES)
GGUF["gemma3"] = partial(as_gguf, GEMMA3_GGUF, GEMMA3_GGUF_SHAPES)
"""Functions that make a tiny GGUF, by architecture. Gemma 3 has its own, as it needs more keys than Llama."""
