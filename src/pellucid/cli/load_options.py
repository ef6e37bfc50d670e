"""The options of every command that loads a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pellucid.cli import common

if TYPE_CHECKING:
    from pellucid.engine.inputs import Inputs
    from pellucid.llm import LLM


@dataclass(frozen=True)
class LoadOptions:
    """Options for loading a model. The fields are arguments of ``pellucid.load``."""

    threads: common.Threads = None
    pin: common.Pin = None
    context: common.Context = None
    precise: common.Precise = False
    kv_cache: common.KVCache = None

    def load(self, model: str, *, before: Callable[[Inputs], object], **more: Any) -> LLM:
        """Load a model with progress bars. ``more`` are further arguments of ``pellucid.load``.

        ``before`` rejects requests that the model cannot run, before kernels are compiled.
        """
        from pellucid.loading import load

        with common.progress() as bars:
            return load(model, **asdict(self), **more, progress=bars, compiling=bars.compiling, before=before)
