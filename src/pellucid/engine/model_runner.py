"""A model ready to run: its plan bound to weights, memory, cache and threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from pellucid.engine.cache_manager import CacheManager, pages_of, rows_of, scratch_bytes
from pellucid.engine.plan_variants import BoundPlan, PlanVariants
from pellucid.engine.programs import (
    BlockPrograms,
    Borders,
    DataParallel,
    HeadProgram,
    checked_vectors,
    compile_kernels,
    rows_of_border,
    run_setup,
)
from pellucid.errors import InvalidRequest, shown
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.kernels.core.library import CompileProgress
from pellucid.model.weight_map import Model
from pellucid.plan.bind import Arrays, allocate, allocate_missing, bind, load_weights
from pellucid.plan.plan import Plan
from pellucid.runtime.batch import ALONE_TOKENS, Chunk, StepArrays, StepLimits, check_step, steps_of
from pellucid.runtime.cache import KVCache
from pellucid.runtime.executor import Executor, Program
from pellucid.runtime.memory import Placement, address
from pellucid.runtime.prefix_cache import default_bytes
from pellucid.runtime.processors import machine_bytes, processors
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.pack import Matrix

if TYPE_CHECKING:
    from pellucid.plan.pipeline_stages import Stage

SMALL = 4  # a step with at most this many tokens is limited by memory bandwidth


class ModelRunner:
    """Runs the steps of a model. ``forward`` may be called from any thread; steps run one after the other.

    With ``executor`` the model shares the threads of another model. With a ``stage`` the runner runs only this pipeline
    stage of the plan; call ``forward_stage`` instead of ``forward``. ``pin`` selects the cores of each thread
    (``runtime/memory.py``). The prefix cache may take ``cache_memory`` bytes (default: ``default_bytes``). Keys and
    values may take ``kv_memory`` bytes, if one context needs no more (default: a quarter of the machine's memory).
    ``cache_of`` makes the cache manager.

    Raises:
        InvalidRequest: the threads cannot be bound to the cores of ``pin``.
        KernelError: a kernel did not compile.
        UnsupportedModel: a format or a shape is not implemented.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: Model,
        plan: Plan,
        limits: StepLimits,
        threads: int,
        progress: CompileProgress | None = None,
        executor: Executor | None = None,
        stage: Stage | None = None,
        pin: str | None = None,
        cache_memory: int | None = None,
        kv_memory: int | None = None,
        cache_of: Callable[[KVCache, int], CacheManager] = CacheManager,
    ) -> None:
        plan = stage.plan if stage else plan
        self.model, self.spec, self.plan, self.limits, self.stage = model, model.spec, plan, limits, stage
        self._pools = model.spec.output_rows == "sequences"
        placement = executor.placement if executor else Placement(threads, pin)
        owns_executor, executor = executor is None, executor or Executor(threads, placement)
        self.encoder: ModelRunner | None = None
        """The runner of the encoder in an encoder-decoder. Its cache holds the keys and values of sources."""
        if plan.encoder:
            kv_memory = None if kv_memory is None else kv_memory // 2
            self.encoder = ModelRunner(
                checkpoint, model, plan.encoder, limits, threads, progress, executor,
                cache_memory=cache_memory, kv_memory=kv_memory,
            )  # fmt: skip
        pages = -(-limits.context // PAGE)
        usual = default_bytes(plan.weight_bytes, machine_bytes())
        kv = KVCache(plan.layers, pages_of(plan, limits, kv_memory), placement)
        self.cache = cache_of(kv, usual if cache_memory is None else cache_memory)
        scratch = scratch_bytes(plan, limits.context)
        self._together = together = limits.together

        def make_step(limits: StepLimits, threads: int) -> StepArrays:
            sizes = limits.tokens, limits.outputs, limits.sequences
            return StepArrays(*sizes, pages, scratch, threads, len(kv.groups))

        self._step = make_step(together, threads)
        room = rows_of(together, threads)
        self._arrays = allocate(plan.buffers, room)
        compile_kernels(checkpoint, model, plan, samples=not stage, progress=progress)
        self._matrices: dict[str, Matrix]
        self._matrices, vectors = load_weights(
            checkpoint, model, plan, placement, self.encoder._matrices if self.encoder else {}
        )
        matrices, sources = self._matrices, self.encoder.cache.kv if self.encoder else None

        def bound(plan: Plan, arrays: Arrays = self._arrays) -> Program:
            # The runner keeps this function. A reference to the runner in the function would be a reference cycle.
            allocate_missing(plan, room, arrays)
            return bind(plan, arrays, matrices, vectors, kv, progress, sources)

        self._variants = PlanVariants(plan, plan.source or plan, bound)
        self._bind = bound
        self._head: HeadProgram | None = None
        self._parts: BlockPrograms | None = None
        self.executor, self._owns_executor = executor, owns_executor
        self._parallel: DataParallel | None = None
        if limits.joint:
            alone = replace(together, tokens=ALONE_TOKENS, outputs=ALONE_TOKENS)
            self._parallel = DataParallel(plan, alone, executor, self._arrays, partial(make_step, alone, 1), bound)
        if plan.setup:
            run_setup(plan.setup, self._arrays, self.executor, scratch, bound)
        # Seconds of each pipeline stage. Empty unless this is the runner of all stages (``cluster/staged_runner.py``).
        self.stage_seconds = list[float]()

    @property
    def threads(self) -> int:
        """Number of threads that run a step."""
        return self.executor.threads

    @property
    def idle_core(self) -> bool:
        """True if a step leaves a core idle."""
        return self.threads < processors().usable

    @property
    def width(self) -> int:
        """Columns of the output: V for a language model, D for a sentence encoder, N for a classifier."""
        return self.spec.output_width

    def forward(self, chunks: Sequence[Chunk], *, reserved: bool = False) -> NDArray[np.float32]:
        """Run one step. Returns the output rows: logits (R, V), or sentence vectors (B, D). The caller may keep them.

        The block table of each chunk grows by the tokens of the chunk. ``reserved``: its pages are allocated already
        (``CacheManager.reserve``). The encoder runs first, so a step may hold a source and tokens that attend to it.

        Raises:
            InvalidRequest: the step exceeds its limit of tokens, rows or sequences, a chunk has more outputs than
                tokens, or the model is closed.
            CacheFull: no pages are left.
        """
        return self._run(chunks, [], reserved=reserved)

    def forward_stage(
        self,
        chunks: Sequence[Chunk],
        received: Iterable[NDArray[np.float32]],
        send: Callable[[list[NDArray[np.float32]]], object],
    ) -> NDArray[np.float32]:
        """Run one step of a stage. ``received`` yields the rows (T, width) of each received buffer, in order.

        ``send`` is called with the rows of the sent buffers when they are computed. The next step overwrites them. The
        last stage returns the output rows, as ``forward`` does.

        Raises: as ``forward``, and the errors of ``received`` and ``send``.
        """
        return self._run(chunks, received, send)

    def _run(
        self,
        chunks: Sequence[Chunk],
        received: Iterable[NDArray[np.float32]],
        send: Callable[[list[NDArray[np.float32]]], object] | None = None,
        *,
        reserved: bool = False,
    ) -> NDArray[np.float32]:
        check_step(chunks, self.limits)
        if self.encoder is not None:
            if sources := [chunk for chunk in chunks if chunk.encodes]:
                self.encoder.forward(sources, reserved=reserved)
                chunks = [chunk for chunk in chunks if not chunk.encodes]
            if any(chunk.encoder is None for chunk in chunks):
                raise InvalidRequest("the decoder's tokens attend to a source: encode a source first (Chunk.encodes)")
            if not chunks:
                return np.empty((0, self.width), np.float32)
        # The pages of the sources must not change during the step.
        with self.cache.lock, self.encoder.cache.lock if self.encoder else nullcontext():
            self._refuse_if_closed()
            self.cache.drain()
            if not reserved:
                self._allocate(chunks)
            if self._parallel and len(chunks) > 1:
                return self._run_divided(self._parallel, chunks)
            return self._run_alone(chunks, received, send)

    @contextmanager
    def _growing(self, chunks: Sequence[Chunk]) -> Iterator[None]:
        """A step of chunks whose pages are allocated: at its end, their block tables grow by their tokens."""
        for chunk in chunks:
            self.cache.kv.begin(chunk.table)
        yield
        for chunk in chunks:
            self.cache.kv.advance(chunk.table, len(chunk.tokens))

    def _run_divided(self, parallel: DataParallel, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Run one step of several sequences: each on one thread, or all threads together in one or several parts."""
        parts = None if any(chunk.recorder for chunk in chunks) else parallel.divide(chunks)
        if parts is None:
            return np.concatenate([self._run_alone(part, []) for part in steps_of(chunks, self._together)])
        with self._growing(chunks):
            rows = np.concatenate(parallel.run(chunks, parts))
        return rows[:, : self.width]

    def _run_alone(
        self,
        chunks: Sequence[Chunk],
        received: Iterable[NDArray[np.float32]],
        send: Callable[[list[NDArray[np.float32]]], object] | None = None,
    ) -> NDArray[np.float32]:
        """Run one step. The caller holds the lock, has checked the chunks, and has allocated their pages."""
        tokens, outputs = self._step.fill(chunks)
        rows = len(chunks) if self._pools else outputs
        variant = self._variants.of(chunks)
        out = self._fresh_output(variant, rows)
        with self._growing(chunks):
            begin = partial(self.executor.step_in_parts, step=self._step.record, small=tokens * (tokens <= SMALL))
            if self.stage:  # after all other preparation, because ``received`` may wait for the previous stage
                for border, values in zip(self.stage.receives, received, strict=True):
                    rows_of_border(border, self._copies(tokens), self._arrays.by_name)[:] = values
            variant.run(chunks, begin, self._arrays.by_name, self.cache.kv)
            if send and self.stage:  # before the cache advances, because the next stage waits for these rows
                send([rows_of_border(border, tokens, self._arrays.by_name) for border in self.stage.sends])
        return out[:rows, : self.width]

    def _copies(self, tokens: int) -> int:
        """Number of rows of a buffer. In a step with one row each thread may read its own copy of the row."""
        return self.threads if tokens == 1 else tokens

    def block_programs(self) -> BlockPrograms:
        """The parts of the program that a step may begin with (``forward_parts``).

        Raises:
            InvalidRequest: a step of the model runs a whole text, or the model is divided over several machines.
        """
        if self.stage:
            raise InvalidRequest("the model runs on several machines, so a step cannot begin at a block")
        if self._parts is None:
            with self.cache.lock:
                self._parts = BlockPrograms(self.plan, self._bind)
        return self._parts

    def forward_parts(
        self, chunks: Sequence[Chunk], first: int, received: Sequence[NDArray[np.float32]], keep: Collection[int] = ()
    ) -> tuple[NDArray[np.float32], dict[int, Borders]]:
        """Run one step from the part ``first`` of ``block_programs`` on, which gets the rows ``received``.

        Returns the output rows, and the rows that the parts ``keep`` received.

        Raises: as ``forward``.
        """
        check_step(chunks, self._together)
        parts = self.block_programs()
        with self.cache.lock:
            self._refuse_if_closed()
            self.cache.drain()
            self._allocate(chunks)
            tokens, outputs = self._step.fill(chunks)
            with self._growing(chunks):
                arrays = self._arrays.by_name
                for rows, own in zip(parts.received(first, self._copies(tokens), arrays), received):
                    rows[:] = own
                begin = partial(self.executor.step_in_parts, step=self._step.record)
                output = partial(self._fresh_output, rows=outputs)
                out, kept = parts.run(chunks, first, begin, arrays, self.cache.kv, output, keep)
        return out[:outputs, : self.width], kept

    def forward_all(self, chunks: Sequence[Chunk]) -> list[NDArray[np.float32]]:
        """Run any number of chunks, in several steps if necessary. Returns the output rows of each chunk.

        The scheduler has reserved their pages. Raises: as ``forward``; each chunk must fit into a step.
        """
        found: list[NDArray[np.float32]] = []
        for part in steps_of(chunks, self.limits):
            rows = self.forward(part, reserved=True)
            counts = [1 if self._pools else chunk.outputs for chunk in part]
            # The rows are copied, so that a caller who keeps a row does not keep the rows of other chunks in memory.
            several = [own.copy() for own in np.split(rows, np.cumsum(counts)[:-1])] if part[1:] else []
            found += several or [rows]
        return found

    def _allocate(self, chunks: Sequence[Chunk], *, in_place: bool = True) -> None:
        """Allocate the pages that the chunks need. Raises CacheFull."""
        for chunk in chunks:
            self.cache.allocate(chunk.table, len(chunk.tokens), in_place=in_place)

    def _fresh_output(self, bound: BoundPlan, rows: int) -> NDArray[np.float32]:
        """Allocate a new output array for the step, so that the caller can keep it without a copy."""
        if not self.plan.output:  # a stage before the last one
            return np.empty((max(rows, 1), 0), np.float32)
        width = self.plan.buffers[self.plan.output].width
        out = self._arrays.by_name[self.plan.output] = np.empty((max(rows, 1), width), np.float32)
        for record, word in bound.outputs:
            bound.program.records[record, word] = address(out)
        return out

    def project(self, vectors: NDArray[np.float32], rows: int = 1) -> NDArray[np.float32]:
        """The outputs (n, V) of vectors (n, D) that replace the residual stream after the last block.

        Each sequence has ``rows`` vectors. A model that pools rows returns one output for each sequence, (n / rows, N).

        Raises:
            InvalidRequest: the model has several residual streams, the vectors have another width, or their number is
                no multiple of ``rows``.
        """
        found, limits = list[NDArray[np.float32]](), self._together
        vectors = checked_vectors(self.spec, vectors, rows, limits.tokens)
        most = min(limits.tokens, limits.outputs, limits.sequences * rows if self._pools else limits.tokens)
        most = most // rows * rows
        for first in range(0, len(vectors), most):
            part = vectors[first : first + most]
            made_rows = len(part) // rows if self._pools else len(part)
            with self.cache.lock:
                self._refuse_if_closed()
                self._head = self._head or HeadProgram(self.plan.source or self.plan, self._bind)
                self._head.fill(part, self._arrays.by_name)
                self._step.fill_rows(len(part), rows if self._pools else 0)
                made = self._fresh_output(self._head.bound, made_rows)
                self.executor.run(self._head.bound.program, self._step.record)
            found.append(made[:made_rows, : self.width])
        return found[0] if len(found) == 1 else np.concatenate([np.empty((0, self.width), np.float32), *found])

    def profile(self, chunks: Sequence[Chunk]) -> NDArray[np.float64]:
        """Run one step operation by operation. Returns the seconds of each operation, in the order of the plan.

        Each operation runs once, in its place in the step, because an operation that runs repeatedly on its own output
        produces denormal numbers, which are slow. The overhead of starting the threads and of the barrier is measured
        with an empty program, and subtracted. The step is discarded afterwards, so no sequence grows.

        Raises:
            InvalidRequest, CacheFull: as ``forward``.
        """
        check_step(chunks, self._together)
        if self.encoder:
            raise InvalidRequest(f"{shown(self.spec.name)}: the steps of an encoder-decoder cannot be profiled")
        records = self._variants.plain.program.records
        with self.cache.lock:
            self._refuse_if_closed()
            try:
                self._allocate(chunks, in_place=False)
                _, outputs = self._step.fill(chunks)
                # The caller of the last step may still hold its output.
                self._fresh_output(self._variants.plain, len(chunks) if self._pools else outputs)
                overhead = min(self._seconds(records[:0]) for _ in range(9))
                seconds = np.array([self._seconds(records[i : i + 1]) for i in range(len(records))])
            finally:
                for chunk in chunks:
                    self.cache.kv.truncate(chunk.table, chunk.table.length)
        return np.maximum(seconds - overhead, 0.0)

    def _seconds(self, records: NDArray[np.int64]) -> float:
        """Seconds that a part of the program takes."""
        part = Program(records, ())
        start = time.perf_counter()
        self.executor.run(part, self._step.record)
        return time.perf_counter() - start

    def _refuse_if_closed(self) -> None:
        if self.executor.closed:
            raise InvalidRequest("the model is closed: load it again")

    def array(self, buffer: str) -> NDArray[Any]:
        """A view of a buffer after the last step: float32 (rows, width), or the bytes of activation blocks."""
        return self._arrays.by_name[buffer]

    def close(self) -> None:
        """Stop the threads. Waits for a running step to finish."""
        if self.executor.forked:  # locks may be held by threads that exist only in the parent
            return
        with self.cache.lock:
            if self._owns_executor:
                self.executor.close()
