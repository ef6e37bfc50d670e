"""Tiny models with a tokenizer that has a letter for each token, opened with all their numbers in float32."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pellucid
from pellucid.llm import LLM
from support.sources import tokenizer_file
from support.tiny import TINY


def lettered_llm(name: str, folder: Path) -> LLM:
    """A copy of a model of ``TINY`` in ``folder``, opened."""
    copy = Path(shutil.copytree(TINY[name], folder / name))
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer_file({0: "<s>"}, 0)))
    return pellucid.load(copy, precise=True, kv_cache="f32", threads=1)
