"""Small random encoders, one for each task, and a server of them."""

from __future__ import annotations

import json
from pathlib import Path

from pellucid.testing import random_model

PROMPTS = {
    "query": "a query: ",
    "document": "a text: ",
    "classification": "a class: ",
    "retrieval.passage": "a passage: ",
}
MODULES = {
    "embed": ["Transformer", "Pooling", "Normalize"],
    "plain": ["Transformer", "Pooling"],
    "tokens": ["Transformer"],
    "sparse": ["MLMTransformer", "SpladePooling"],
}
POOLING = {"Pooling": {"pooling_mode_mean_tokens": True}, "SpladePooling": {"pooling_strategy": "max"}}
NAMES = ("prompted", "plain", "sparse", "tokens", "labels", "ranker", "tagger", "filler", "text")


def encoder_models(folder: Path) -> Path:
    """Write the models ``NAMES`` into a folder. Returns the folder.

    "prompted" has prompts and shorter vectors, "plain" neither, and its vectors are not of length 1; "text" makes text.
    """
    _bert(folder, "prompted", matryoshka_dimensions=[16, 32])
    _modules(folder / "prompted", "embed", PROMPTS)
    _bert(folder, "plain")
    _modules(folder / "plain", "plain")
    _bert(folder, "sparse", "MaskedLM")
    _modules(folder / "sparse", "sparse")
    _bert(folder, "tokens")
    _modules(folder / "tokens", "tokens")
    _bert(folder, "labels", "SequenceClassification", num_labels=3)
    _bert(folder, "ranker", "SequenceClassification", num_labels=1)
    _bert(folder, "tagger", "TokenClassification", num_labels=3)
    _bert(folder, "filler", "MaskedLM")
    random_model("llama", folder / "text", kind="safetensors")
    return folder


def _bert(folder: Path, name: str, head: str = "", **config: object) -> None:
    classes = {"architectures": [f"BertFor{head}"]} if head else {}
    random_model("bert", folder / name, kind="safetensors", metadata={**classes, **config})


def _modules(folder: Path, task: str, prompts: dict[str, str] | None = None) -> None:
    """Write the files of sentence-transformers."""
    listed = []
    for number, kind in enumerate(MODULES[task]):
        path = "" if kind.endswith("Transformer") else f"{number}_{kind}"
        listed.append({"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.{kind}"})
        if kind in POOLING:
            (folder / path).mkdir()
            (folder / path / "config.json").write_text(json.dumps(POOLING[kind]))
    (folder / "modules.json").write_text(json.dumps(listed))
    if prompts:
        settings = {"prompts": prompts, "default_prompt_name": None}
        (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
