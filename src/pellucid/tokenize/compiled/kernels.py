"""The kernels that the compiled form of a tokenizer may call."""

from __future__ import annotations

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.text.rewrite import RULES

STAGES = (
    *(KernelKey(f"text.{name}") for name in ("split", "added", "neighbours", "normalize")),
    *(KernelKey(f"text.{name}") for name in ("words", "splits", "tree", "layout", "pairs")),
    *(KernelKey("text.apart", everywhere=everywhere) for everywhere in (False, True)),
    *(KernelKey("text.rewrite", rules=rules) for rules in RULES),
)


def kernels(model: KernelKey) -> list[KernelKey]:
    """The ``model``'s kernel, and the kernels of all stages and tables."""
    return [model, *STAGES]
