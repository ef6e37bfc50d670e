"""The whole pipeline from text to text, on one page. This is the code that runs.

    text → tokenize → embed → +position → blocks ×L → norm → project → softmax → sample → detokenize → text

``build_plan`` defines the computation of a model. It runs once, when a model is loaded, and writes the plan that every
step executes (``pellucid plan MODEL`` prints it). ``step`` runs the next tokens of some sequences through the plan
together, and passes the outputs to the tasks of the sequences.

A task is any work that needs the model: text generation, beam search, scoring, sentence embedding. ``engine/`` holds
the tasks, the model runner, the scheduler, which chooses the tokens of a step, and the engine, which runs the steps.
``engine/request.py`` tokenizes the prompt of a generation (in ``tokenize/tokenizer.py``). Its task samples (in
``sample/chain.py``: softmax is a part of the draw) and detokenizes (in ``tokenize/stages/decode.py``).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.kernels.matmul.packed_layout import PackedLayout
from pellucid.model.spec import ModelSpec
from pellucid.plan.block import block
from pellucid.plan.builder import Builder
from pellucid.plan.embedding import embed, embedding_norm
from pellucid.plan.passes import optimize
from pellucid.plan.per_layer import per_layer_embeddings
from pellucid.plan.plan import Plan
from pellucid.plan.position import position
from pellucid.plan.project import final_norm, project
from pellucid.plan.streams import spread_streams
from pellucid.runtime.batch import Chunk
from pellucid.runtime.sequence import CachedSequence

if TYPE_CHECKING:
    from concurrent.futures import Future

T_co = TypeVar("T_co", covariant=True)
ChunkOutput = NDArray[np.float32]
"""The output of the model for a chunk: logits (R, V) of its last R tokens, or its sentence vector (1, D)."""


def build_plan(
    spec: ModelSpec,
    layouts: Mapping[str, PackedLayout],
    activation_bits: int = 8,
    kv_dtype: str | None = None,
) -> Plan:
    """The plan of a model: token ids (T,) → logits (R, V), or sentence vectors (B, D).

    ``layouts`` is the packed layout of each matrix. ``activation_bits`` (8, 16 or 24) is the number of bits of
    quantised activations, ``kv_dtype`` the dtype of keys and values (``plan/builder.py``).
    """
    return optimize(unoptimized_plan(spec, layouts, activation_bits, kv_dtype))


def unoptimized_plan(
    spec: ModelSpec,
    layouts: Mapping[str, PackedLayout],
    activation_bits: int = 8,
    kv_dtype: str | None = None,
) -> Plan:
    """The plan before any pass, stage by stage. Arguments as in :func:`build_plan`."""
    builder = Builder(spec, layouts, activation_bits, kv_dtype)
    x = embed(builder)  # each token's row of the embedding matrix           (T, D)
    x = position(builder, x)  # adds a vector, or computes the angles that rotate queries and keys
    x = embedding_norm(builder, x)
    per_layer_embeddings(builder, x)  # a vector for each block, in models that have them  (T, L P)
    spread_streams(builder, x)  # several residual streams, in models that keep them     (T, S D)
    for layer, block_spec in enumerate(spec.blocks):
        x = block(builder, layer, block_spec, x)  # attention and feed-forward, each added to x (T, D)
    x = final_norm(builder, x)  # only the rows that need logits                 (R, D)
    logits = project(builder, x)  # a score for every token of the vocabulary      (R, V)
    return builder.finish(logits)


class Runner(Protocol):
    """Runs a plan. ``engine/model_runner.py`` implements it."""

    def forward_all(self, chunks: Sequence[Chunk]) -> list[ChunkOutput]:
        """Run the chunks and return the output of each."""
        ...


class Wait(Struct, frozen=True):
    """A marker among a task's results: the next result needs ``job``, which runs in another thread.

    An example is the mask of a constraint.
    """

    job: Future[None]


class Task(Protocol[T_co]):
    """Work that needs the model. Its results have type T."""

    @property
    def done(self) -> bool:
        """True if the task needs no further step."""
        ...

    def begin(self, waited: float) -> None:
        """Prepare for the first step, ``waited`` seconds after the submission."""
        ...

    def sequences(self) -> Sequence[CachedSequence]:
        """The sequences that have tokens for the next step, in a stable order."""
        ...

    def texts(self) -> Sequence[CachedSequence]:
        """All sequences that may have pages."""
        ...

    def take(self, sequence: CachedSequence, outputs: ChunkOutput, seconds: float) -> Iterator[T_co | Wait]:
        """Process the outputs of a sequence's tokens from a step of ``seconds`` seconds, and yield the results.

        ``outputs`` has no rows if the chunk requested none. After a `Wait` the engine iterates again when the job has
        ended. Until then the sequence has no tokens for a step.
        """
        ...

    def close(self) -> None:
        """Free the pages of all sequences. May be called at any time between steps."""
        ...


class Scheduled(Struct, frozen=True):
    """The chunk of a task's sequence in a step."""

    task: Task[Any]
    sequence: CachedSequence
    chunk: Chunk


def step(runner: Runner, scheduled: Sequence[Scheduled]) -> Iterator[tuple[Scheduled, Iterator[Any]]]:
    """Run the scheduled chunks together. Yields each chunk with the iterator over its task's results.

    The task processes the outputs when the iterator is consumed. The runner splits the chunks into several steps if
    they exceed the limits of a step.
    """
    start = time.perf_counter()
    outputs = runner.forward_all([one.chunk for one in scheduled])  # embed → … → project
    seconds = time.perf_counter() - start
    for one, rows in zip(scheduled, outputs):
        yield one, one.task.take(one.sequence, rows, seconds)  # softmax → sample → detokenize → text
