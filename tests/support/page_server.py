"""A server of the models that the tests of the page show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pellucid
from pellucid.llm import LLM
from pellucid.serve.guard import AccessRules
from pellucid.testing import random_model
from support.served import Served

MODELS = ("smollm2", "minilm", "mixture", "hybrid")
OTHERS = ("learned", "alibi", "windows")
"""Models with positions of other kinds."""
RANDOM: dict[str, dict[str, Any]] = {
    "mixture": {"kind_of": "qwen2moe", "layers": 3},
    "hybrid": {"kind_of": "qwen3next"},
    "learned": {"kind_of": "gpt2"},
    "alibi": {"kind_of": "bloom"},
    "windows": {"kind_of": "gemma4", "layers": 6},
}


def page_models(folder: Path) -> Path:
    """Write the random models into a folder. Returns the folder."""
    for name, options in RANDOM.items():
        sizes = {key: value for key, value in options.items() if key != "kind_of"}
        random_model(options["kind_of"], folder / f"{name}.gguf", context=512, **sizes)
    return folder


class PageServer(Served):
    """A server of the page's models, real ones and models of a folder. Other ``names`` come from ``load``."""

    def __init__(
        self,
        folder: Path,
        rules: AccessRules | None = None,
        *,
        names: Sequence[str] = (*MODELS, *OTHERS),
        load: Callable[[str], Any] | None = None,
    ) -> None:
        self.folder = folder
        super().__init__(folder, rules or AccessRules(), names=names, load=load or self.load)

    def load(self, name: str) -> LLM:
        return pellucid.load(self.file(name), threads=2)

    def file(self, name: str) -> Path | str:
        """What ``pellucid.load`` takes for a model's name."""
        path = self.folder / f"{name}.gguf"
        return path if path.exists() else name
