"""The whole way from text to text, on one page. This is the code that runs.

    text → tokenize → embed → +position → blocks ×L → norm → project → softmax → sample → detokenize → text

``build_plan`` defines what a model computes. It runs once, when a model is loaded, and writes the plan that every step
executes (``pellucid plan MODEL`` prints it). ``step`` runs the next tokens of some texts through the plan together, and
gives the tasks that these belong to their outputs.

A task is anything that needs the model: generating a text, beam search, scoring a text, embedding sentences.
``engine/`` holds the tasks, the model runner, the scheduler, which says what runs in a step, and the engine, which
repeats steps. ``engine/request.py`` tokenizes the prompt of a generation (in ``tokenize/tokenizer.py``); its task
samples (in ``sample/chain.py``: softmax is a part of the draw) and detokenizes (in
``tokenize/stages/decode.py``).
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

    ``layouts`` states how each matrix is packed, ``activation_bits`` (8, 16 or 24) the bits that activations are
    quantised to, ``kv_dtype`` the type of keys and values (``plan/builder.py``).
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
    x = final_norm(builder, x)  # only the rows whose logits are wanted          (R, D)
    logits = project(builder, x)  # a score for every token of the vocabulary      (R, V)
    return builder.finish(logits)


class Runner(Protocol):
    """Runs a plan. ``engine/model_runner.py`` implements it."""

    def forward_all(self, chunks: Sequence[Chunk]) -> list[ChunkOutput]:
        """Run the chunks and return the output of each."""
        ...


class Wait(Struct, frozen=True):
    """A result of a task that needs a job of another thread before the next result, such as a constraint's mask."""

    job: Future[None]


class Task(Protocol[T_co]):
    """Something that needs the model. Its results have type T."""

    @property
    def done(self) -> bool:
        """Whether the task needs no further step."""
        ...

    def begin(self, waited: float) -> None:
        """Its first step comes, after it has ``waited`` so many seconds."""
        ...

    def sequences(self) -> Sequence[CachedSequence]:
        """The texts with tokens that have to be read. They keep their order."""
        ...

    def texts(self) -> Sequence[CachedSequence]:
        """All texts that may have pages."""
        ...

    def take(self, sequence: CachedSequence, outputs: ChunkOutput, seconds: float) -> Iterator[T_co | Wait]:
        """Take the outputs of a text's next tokens, of a step of ``seconds``, and yield the results.

        Outputs may be without rows: none was wanted. After a `Wait` the engine iterates again when the job has ended;
        until then the text has nothing to read.
        """
        ...

    def close(self) -> None:
        """Give the pages of all texts back. May be called at any time between steps."""
        ...


class Scheduled(Struct, frozen=True):
    """The next tokens of a task's text."""

    task: Task[Any]
    sequence: CachedSequence
    chunk: Chunk


def step(runner: Runner, scheduled: Sequence[Scheduled]) -> Iterator[tuple[Scheduled, Iterator[Any]]]:
    """Run the next tokens of some texts together, and yield what each makes of its outputs, when it is iterated over.

    The runner makes several steps of them if they exceed the limits of one.
    """
    start = time.perf_counter()
    outputs = runner.forward_all([one.chunk for one in scheduled])  # embed → … → project
    seconds = time.perf_counter() - start
    for one, rows in zip(scheduled, outputs):
        yield one, one.task.take(one.sequence, rows, seconds)  # softmax → sample → detokenize → text
