"""Reads the pooling of a sentence encoder from the files of sentence-transformers in the model's folder."""

from __future__ import annotations

from pellucid.errors import UnsupportedModel
from pellucid.errors.messages import brief
from pellucid.model.config import Config
from pellucid.model.spec import Pooling
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.json_files import read_json, read_json_list

POOLING, MODULES = "1_Pooling/config.json", "modules.json"
WITHOUT_WEIGHTS = ("Transformer", "Pooling", "Normalize")
"""Modules of sentence-transformers that need no further weights. Pellucid computes them."""


def sentence_pooling(checkpoint: Checkpoint, config: Config, width: int) -> Pooling:
    """Mean pooling of rows of ``width`` values, the only implemented kind.

    Raises:
        UnsupportedModel: the files of sentence-transformers in the model's folder require another kind of pooling, or
            further modules, which have weights in separate folders.
    """
    modules = checkpoint.path / MODULES
    if modules.is_file():
        for module in read_json_list(modules):
            stated = module if isinstance(module, dict) else {}
            kind, where = str(stated.get("type", "")).rpartition(".")[2], stated.get("path")
            if kind not in WITHOUT_WEIGHTS or (kind == "Pooling" and f"{where}/config.json" != POOLING):
                raise UnsupportedModel(
                    f"{checkpoint.path.name}: {MODULES}: module {brief(kind)} in {brief(where)} is not supported, and "
                    f"would change the vectors (known: {', '.join(WITHOUT_WEIGHTS)})"
                )
    path = checkpoint.path / POOLING
    if path.is_file():
        asked = Config(read_json(path), path)
        asked.refuse("pooling_mode", "mean")
        asked.refuse("include_prompt", True)
        for key in asked.values:
            if key.startswith("pooling_mode_"):
                asked.refuse(key, key == "pooling_mode_mean_tokens")
    dimensions = config.number_set("matryoshka_dimensions", width + 1) - {0}
    shortens = bool(dimensions) or config.flag("is_matryoshka", False)
    return Pooling(matryoshka=tuple(sorted(dimensions)) if shortens else None)
