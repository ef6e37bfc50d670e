"""Models that are written and loaded once for the tests of a module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pellucid
from pellucid.llm import LLM


@contextmanager
def models_of(folder: Path, write: Callable[[Path, str], Path]) -> Iterator[Callable[..., LLM]]:
    """A function that loads the model of a name, once, exactly or as users do. ``write`` writes its file."""
    open_models = dict[tuple[str, bool], LLM]()

    def load(name: str, precise: bool = True) -> LLM:
        if (name, precise) not in open_models:
            path = write(folder / f"{name}.gguf", name)
            exactly: dict[str, Any] = {"precise": True, "kv_cache": "f32"} if precise else {}
            open_models[name, precise] = pellucid.load(path, threads=2, **exactly)
        return open_models[name, precise]

    yield load
    for llm in open_models.values():
        llm.close()
