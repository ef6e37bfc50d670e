"""The real models and their goldens. A step has up to 64 positions with logits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from support.tiny import GOLDENS

from pellucid import pipeline
from pellucid.engine.model_runner import ModelRunner
from pellucid.llm import LLM
from pellucid.load_options import LoadOptions
from pellucid.model.read import read_model
from pellucid.plan.bind import layouts
from pellucid.runtime.batch import Chunk, StepLimits
from pellucid.runtime.cache import BlockTable
from pellucid.runtime.processors import processors
from pellucid.tokenize import load_tokenizer
from pellucid.weights.open import open_checkpoint
from pellucid.weights.store import resolve

STEP = 64


@dataclass(frozen=True)
class Subject:
    """A model under test and its goldens."""

    name: str
    llm: LLM

    @property
    def prompts(self) -> list[dict[str, Any]]:
        return json.loads((GOLDENS / f"{self.name}.json").read_text())["prompts"]

    @property
    def windows(self) -> dict[str, np.ndarray]:
        with np.load(GOLDENS / f"{self.name}.npz") as file:
            return dict(file)

    @property
    def llamacpp(self) -> dict[str, Any]:
        return json.loads((GOLDENS / "llamacpp.json").read_text())[self.name]["variants"]


def load(name: str, *, precise: bool, kv_cache: str | None = None) -> LLM:
    checkpoint = open_checkpoint(resolve(name))
    model = read_model(checkpoint)
    options = LoadOptions(precise=precise, kv_cache=kv_cache)
    packed = layouts(checkpoint, model)
    plan = pipeline.build_plan(model.spec, packed, options.activation_bits, options.kv_cache)
    limits = StepLimits(2048, tokens=STEP, outputs=STEP)
    runner = ModelRunner(checkpoint, model, plan, limits, processors().threads)
    return LLM(checkpoint, runner, load_tokenizer(checkpoint))


def logits(runner: ModelRunner, ids: list[int], first: int = 0) -> Iterator[tuple[slice, np.ndarray]]:
    """Teacher forcing in steps: yield positions from ``first`` on, and the logits after each position."""
    sequence = BlockTable()
    try:
        for start in range(0, len(ids), STEP):
            part = ids[start : start + STEP]
            wanted = min(len(part), max(0, start + len(part) - first))
            rows = runner.forward([Chunk(sequence, part, outputs=wanted)])
            if wanted:
                yield slice(start + len(part) - wanted, start + len(part)), rows
    finally:
        runner.cache.truncate(sequence, 0)


def log_sum_exp(rows: np.ndarray) -> np.ndarray:
    """log Σ exp of each row: (R, V) → (R,) in float64."""
    top = rows.max(-1)
    return top + np.log(np.exp(rows - top[:, None]).sum(-1, dtype=np.float64))
