"""A server of the models that the tests of the page show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pellucid
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
    """A server of the page's models, real ones and those of a folder."""

    def __init__(self, folder: Path, rules: AccessRules | None = None) -> None:
        super().__init__(folder, rules or AccessRules())
        self.folder = folder
        self.models.names[:] = (*MODELS, *OTHERS)
        self.models._load = lambda name: pellucid.load(self.file(name), threads=2)

    def file(self, name: str) -> Path | str:
        """What ``pellucid.load`` takes for a model's name."""
        path = self.folder / f"{name}.gguf"
        return path if path.exists() else name
