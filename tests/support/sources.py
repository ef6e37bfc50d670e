"""Folders of tiny encoder-decoders that ``pellucid.load`` opens: the models of ``tiny.SOURCES``, with a tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from support.tiny import SOURCES

LETTERS = [chr(0x4E00 + i) for i in range(128)]
"""The text of each token. Special tokens have names."""


def tokenizer_file(special: dict[int, str], end: int) -> dict[str, Any]:
    """Contents of tokenizer.json: a token for each letter, and ``end`` after a text."""
    vocabulary = {special.get(i, letter): i for i, letter in enumerate(LETTERS)}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    ending = {"SpecialToken": {"id": special[end], "type_id": 0}}
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": text, **plain} for i, text in special.items()],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, ending],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}, ending],
            "special_tokens": {special[end]: {"id": special[end], "ids": [end], "tokens": [special[end]]}},
        },
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary, "merges": [],
        },
    }  # fmt: skip


def source_model(name: str, folder: Path, **generation: Any) -> Path:
    """A copy of a tiny encoder-decoder with a tokenizer. ``generation`` changes generation_config.json."""
    copy = Path(shutil.copytree(SOURCES[name], folder / name))
    config = json.loads((copy / "config.json").read_text())
    end = config["eos_token_id"]
    special = {config["pad_token_id"]: "<pad>", end: "</s>", 5: "fra_Latn", 6: "__de__"}
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer_file(special, end)))
    path = copy / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **generation}))
    return copy
