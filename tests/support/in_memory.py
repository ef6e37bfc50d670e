"""A checkpoint in memory with random float32 tensors, for model specs that no family uses."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pellucid import pipeline
from pellucid.engine.model_runner import ModelRunner
from pellucid.model.shapes import expected_shapes
from pellucid.model.spec import ModelSpec
from pellucid.model.weight_map import Model, Slot
from pellucid.plan.bind import layouts
from pellucid.runtime.batch import StepLimits
from pellucid.weights.checkpoint import Tensor
from support.tiny import random_weights


class InMemory:
    """A ``Checkpoint`` over arrays."""

    kind, path = "safetensors", Path("memory")

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.metadata: dict[str, Any] = {}
        self._bytes = {
            name: np.ascontiguousarray(one, np.float32).reshape(-1).view(np.uint8) for name, one in arrays.items()
        }
        self.tensors = {
            name: Tensor(name, one.shape, "F32", self.path, 0, 4 * one.size) for name, one in arrays.items()
        }

    def data(self, name: str) -> np.ndarray:
        return self._bytes[name]

    def read(self, name: str, start: int, out: np.ndarray) -> None:
        out[:] = self._bytes[name][start : start + len(out)]

    def check_unchanged(self) -> None:
        pass

    def close(self) -> None:
        pass


def random_model(spec: ModelSpec, seed: int = 0) -> tuple[InMemory, Model]:
    """A random checkpoint for a spec. Tensors are named like their slots."""
    arrays = random_weights(expected_shapes(spec), seed)
    return InMemory(arrays), Model(spec, {slot: Slot(slot) for slot in arrays}, "layers")


@contextmanager
def running(checkpoint: InMemory, model: Model, **limits: int) -> Any:
    """A model runner with float32 weights, keys and values."""
    plan = pipeline.build_plan(model.spec, layouts(checkpoint, model), 16, "f32")  # type: ignore[arg-type]
    room = StepLimits(**{"context": model.spec.context, "tokens": 64, "outputs": 64, **limits})
    runner = ModelRunner(checkpoint, model, plan, room, threads=2)  # type: ignore[arg-type]
    try:
        yield runner
    finally:
        runner.close()
