"""The whole way from text to text, on one page. This is what runs.

    text → tokenize → embed → +position → blocks ×L → norm → project → softmax → sample → detokenize → text

``forward`` says what a model does with numbers: it is executed once, when a model is loaded, and writes the plan
that every step runs (``pellucid plan MODEL`` prints it). ``step`` is one turn of the loop: the pending tokens of some
tasks go through the plan together, and each task takes its rows of logits. ``run`` goes round until a task is done.

A task is whatever needs the model: a text that is being generated, beams, a text that is scored, sentences that are
embedded. ``engine/`` holds them, and the model runner.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.matmul.packed_layout import PackedLayout
from pellucid.model.spec import ModelSpec
from pellucid.plan.block import block
from pellucid.plan.builder import Builder
from pellucid.plan.embedding import embed, embedding_norm
from pellucid.plan.passes import optimize
from pellucid.plan.plan import Plan
from pellucid.plan.position import position
from pellucid.plan.project import final_norm, project
from pellucid.runtime.batch import Chunk

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Rows = NDArray[np.float32]
"""What the model gives for a chunk: logits (R, V) of its last R tokens, or its sentence vector (1, D)."""


def forward(
    spec: ModelSpec,
    layouts: Mapping[str, PackedLayout],
    activation_bits: int = 8,
    kv_cache: str | None = None,
) -> Plan:
    """The plan of a model: token ids (T,) → logits (R, V), or sentence vectors (B, D).

    ``layouts`` says how each matrix is packed, ``activation_bits`` (8 or 16) to how many bits activations are
    quantised, ``kv_cache`` the type of keys and values (``plan/builder.py``).
    """
    plan = Builder(spec, layouts, activation_bits, kv_cache)
    x = embed(plan)  # each token's row of the embedding matrix           (T, D)
    x = position(plan, x)  # a vector added, or angles by which queries and keys are rotated
    x = embedding_norm(plan, x)
    for layer, kind in enumerate(spec.blocks):
        x = block(plan, layer, kind, x)  # attention and feed-forward, each added to x (T, D)
    x = final_norm(plan, x)  # only the rows whose logits are wanted          (R, D)
    logits = project(plan, x)  # a score for every token of the vocabulary      (R, V)
    return optimize(plan.finish(logits))


class Runner(Protocol):
    """What runs a plan: ``engine/model_runner.py``."""

    def forward_all(self, chunks: Sequence[Chunk]) -> list[Rows]:
        """The rows of each chunk."""
        ...


class Task(Protocol[T_co]):
    """What needs the model."""

    @property
    def done(self) -> bool:
        """Whether it needs no further step."""
        ...

    def pending(self) -> list[Chunk]:
        """The tokens that it wants to go through the model next: a chunk for each of its sequences."""
        ...

    def take(self, rows: list[Rows], seconds: float) -> Iterator[T_co]:
        """Go on with the rows of these chunks, which took so many seconds, and give what comes of it."""
        ...


def step(runner: Runner, tasks: Sequence[Task[T]]) -> Iterator[T]:
    """One turn: what each task gives, one task after the other."""
    start = time.perf_counter()
    chunks = [task.pending() for task in tasks]
    rows = iter(runner.forward_all([chunk for some in chunks for chunk in some]))  # embed → … → project
    seconds = time.perf_counter() - start
    for task, some in zip(tasks, chunks):
        yield from task.take(list(islice(rows, len(some))), seconds)  # softmax → sample → detokenize → text


def run(runner: Runner, task: Task[T]) -> Iterator[T]:
    """The loop: turns until a task is done."""
    while not task.done:
        yield from step(runner, [task])
