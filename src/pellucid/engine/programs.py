"""The programs of a model besides the whole plan: its setup, its head, parts that begin at blocks, a program per
thread."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from pellucid.engine.cache_manager import rows_of
from pellucid.engine.plan_variants import BeginStep, BoundPlan, PlanVariants
from pellucid.errors import InvalidRequest
from pellucid.kernels.core.library import CompileProgress, shared
from pellucid.model.spec import ModelSpec
from pellucid.model.weight_map import Model
from pellucid.plan.bind import Arrays, allocate, packers, places
from pellucid.plan.embedding import RESIDUAL
from pellucid.plan.passes import Watch, optimize
from pellucid.plan.plan import At, Plan, Setup
from pellucid.runtime.batch import Chunk, ForwardedEdits, Recorder, StepArrays, StepLimits
from pellucid.runtime.cache import KVCache
from pellucid.runtime.executor import LOOP_KERNELS, Executor, Program
from pellucid.runtime.memory import address
from pellucid.runtime.processors import free_bytes, processors
from pellucid.sample.candidates import SUMS, TOP
from pellucid.weights.checkpoint import Checkpoint

if TYPE_CHECKING:
    from pellucid.plan.pipeline_stages import Border

# Runs the setup of a plan: the operations that compute constants of the weights, once when a model is loaded.


def run_setup(
    setup: Setup, arrays: Arrays, executor: Executor, scratch: int, bind: Callable[[Plan, Arrays], Program]
) -> None:
    """Run ``setup``. Its results are written to the buffers of ``arrays``; its other buffers are temporary.

    ``scratch`` is the number of bytes of scratch memory of a thread.
    """
    temporary = {name: buffer for name, buffer in setup.plan.buffers.items() if name not in arrays.by_name}
    own = allocate(temporary, {"tokens": setup.rows})
    step = StepArrays(setup.rows, 0, 1, 1, scratch, executor.threads)
    step.positions[:] = np.arange(setup.rows)
    step.record[0] = setup.rows
    executor.run(bind(setup.plan, Arrays({**arrays.by_name, **own.by_name})), step.record)


# Runs only the operations after the last block, on given vectors that replace the residual stream.


class HeadProgram:
    """The operations after the last block of ``source``, an unoptimized plan: norms, pooling, output layers, head."""

    def __init__(self, source: Plan, bind: Callable[[Plan], Program]) -> None:
        of_blocks = [i for i, op in enumerate(source.operations) if op.stage.startswith("blocks.")]
        first = of_blocks[-1] + 1
        last = next(op for op in reversed(source.operations[:first]) if RESIDUAL in op.writes)
        self._buffer, view = RESIDUAL, last.views[last.writes.index(RESIDUAL)]
        assert view is not None
        self._width, self._count = view.width, view.count
        self.bound = BoundPlan(optimize(replace(source, operations=source.operations[first:])), bind)

    def fill(self, vectors: NDArray[np.float32], arrays: dict[str, NDArray[Any]]) -> None:
        """Write the vectors (n, D) to the buffer of the residual stream."""
        rows = arrays[self._buffer].reshape(-1)[: len(vectors) * self._width].reshape(-1, self._width)
        rows[:, self._count :] = 0
        rows[:, : self._count] = vectors


def checked_vectors(spec: ModelSpec, vectors: NDArray[np.float32], rows: int, most: int) -> NDArray[np.float32]:
    """The vectors (n, D) as float32. Each sequence has ``rows`` vectors, at most ``most``.

    Raises:
        InvalidRequest: as ``ModelRunner.project``.
    """
    vectors = np.atleast_2d(np.asarray(vectors, np.float32))
    if spec.altup:
        raise InvalidRequest(
            f"the model has {spec.altup.streams} residual streams, so a vector of one of them has no logits: use "
            "gradients or attribution_graph"
        )
    if vectors.ndim != 2 or vectors.shape[1] != spec.embedding.width:
        raise InvalidRequest(f"vectors of shape {vectors.shape}; they must be (n, {spec.embedding.width:,})")
    if not 1 <= rows <= most or len(vectors) % rows:
        raise InvalidRequest(f"rows={rows:,}: must divide the {len(vectors):,} vectors, and be at most {most:,}")
    return vectors


# Data parallelism: each thread runs the plan for some sequences of a step alone.
#
# The threads of a plan wait for each other after most operations, and read what other threads have written. For an
# encoder with narrow layers this takes up to a fifth of the time on two cores, and more on many cores. Threads that run
# different sequences share only the weights and the cache. Results have the same bits, because a sequence's result
# depends neither on the threads nor on its neighbours.

UNEVEN = 1.25
"""If the thread with the most tokens has more than this many times the mean, all threads compute the step together."""


class DataParallel:
    """Steps whose sequences are divided among threads. A thread's memory is allocated when it is first used.

    ``limits`` are the limits of one thread. ``together`` holds the buffers of the steps that all threads compute
    together; buffers that the setup of the plan has filled are shared. ``make_step`` makes the arrays of a step on one
    thread, and ``bind`` binds the plan to a thread's buffers.
    """

    def __init__(
        self,
        plan: Plan,
        limits: StepLimits,
        executor: Executor,
        together: Arrays,
        make_step: Callable[[], StepArrays],
        bind: Callable[[Plan, Arrays], Program],
    ) -> None:
        self._plan, self._limits, self._executor = plan, limits, executor
        self._together, self._make_step, self._bind = together, make_step, bind
        self._outputs = places(plan, At(plan.output))
        self._arrays, self._steps = list[Arrays](), list[StepArrays]()
        self._programs = list[Program]()
        self._records = np.zeros((0, 0, 0), np.int64)

    def divide(self, chunks: Sequence[Chunk]) -> list[list[int]] | None:
        """The indices of the chunks of each thread, longest first; None if the threads' work would differ too much."""
        threads = self._executor.threads
        loads, parts = [0] * threads, [list[int]() for _ in range(threads)]
        for index in sorted(range(len(chunks)), key=lambda index: -len(chunks[index].tokens)):
            thread = loads.index(min(loads))
            loads[thread] += len(chunks[index].tokens)
            parts[thread].append(index)
        used = [part for part in parts if part]
        uneven = max(loads) * threads > UNEVEN * sum(loads)
        return None if uneven or max(loads) > self._limits.tokens or len(used) < 2 else used

    def run(self, chunks: Sequence[Chunk], parts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Run the chunks of each thread. Returns the output rows of each chunk, in the order of ``chunks``.

        The pages of the chunks are allocated. The next step overwrites the rows.
        """
        while len(self._programs) < len(parts):
            self._add_thread()
        records = self._records[: len(parts)]
        steps = np.stack([self._fill(step, chunks, part) for step, part in zip(self._steps, parts)])
        self._executor.run_apart(records, steps)
        rows: list[NDArray[np.float32]] = [np.empty((0, 0), np.float32)] * len(chunks)
        pools = self._plan.buffers[self._plan.output].rows == "sequences"
        for arrays, part in zip(self._arrays, parts):
            out, first = arrays.by_name[self._plan.output], 0
            for index in part:
                count = 1 if pools else chunks[index].outputs
                rows[index] = out[first : first + count]
                first += count
        return rows

    @staticmethod
    def _fill(step: StepArrays, chunks: Sequence[Chunk], part: Sequence[int]) -> NDArray[np.int64]:
        step.fill([chunks[index] for index in part])
        return step.record

    def _add_thread(self) -> None:
        """Allocate the memory of one more thread, and bind the plan to it."""
        setup = self._plan.setup
        made = {name for op in setup.plan.operations for name in op.writes} if setup else set()
        kept = {name for name in made if name in self._plan.buffers and self._plan.buffers[name].rows == "once"}
        own = {name: buffer for name, buffer in self._plan.buffers.items() if name not in kept}
        arrays = allocate(own, rows_of(self._limits, 1))
        arrays.by_name.update({name: self._together.by_name[name] for name in kept})
        program = self._bind(self._plan, arrays)
        for record, word in self._outputs:
            program.records[record, word] = address(arrays.by_name[self._plan.output])
        self._arrays.append(arrays)
        self._steps.append(self._make_step())
        self._programs.append(program)
        self._records = np.stack([one.records for one in self._programs])


# The program of a model in parts that begin at blocks: a step may begin at any of them, on given vectors.
#
# Copies of a prompt that differ from the prompt only after a block share the values up to this block: they begin there.
# The parts compute the bits of the whole program.

Borders = list[NDArray[np.float32]]
"""The rows of the buffers that a part receives, in the order of ``BlockPart.receives``."""
KEPT = 4
"""Number of sets of watches whose variants of a part are kept."""


class PartRecorder(ForwardedEdits):
    """Passes the edits of a part on to the recorder of a sequence. Edits have other numbers in the part's watch."""

    def __init__(self, recorder: Recorder, watch: Watch, edits: Sequence[int], patterns: Sequence[int]) -> None:
        super().__init__(recorder, edits, patterns)
        self.watch = watch

    first_changed: int | None = None
    first_recorded: int | None = None

    def positions(self, start: int, stop: int) -> range:
        """No position is recorded."""
        return range(start, start)

    def take(self, rows: str, positions: range, values: NDArray[np.float32]) -> None:
        """As in ``Recorder``."""

    def take_pattern(self, block: int, positions: range, rows: NDArray[np.float32]) -> None:
        """As in ``Recorder``."""


class BlockPrograms:
    """The bound parts of a plan. ``bind`` binds a plan to the runner's memory."""

    def __init__(self, plan: Plan, bind: Callable[[Plan], Program]) -> None:
        from pellucid.plan.pipeline_stages import block_parts

        before, self.parts = block_parts(plan)
        self._starts = [part.first for part in self.parts]
        self._before = BoundPlan(optimize(before), bind) if before.operations else None
        self._variants = [PlanVariants(optimize(part.plan), part.plan, bind, KEPT) for part in self.parts]

    def part_of(self, operation: int) -> int:
        """The index of the part with an operation of the plan before the passes."""
        return bisect_right(self._starts, operation) - 1

    def first_part(self, watch: Watch) -> int:
        """The index of the first part with an edit; the last part without edits."""
        operations = [edit.operation for edit in watch.edits]
        operations += [edit.operation for edit in watch.pattern_edits]
        return min((self.part_of(operation) for operation in operations), default=len(self.parts) - 1)

    def run(
        self,
        chunks: Sequence[Chunk],
        first: int,
        begin: BeginStep,
        arrays: dict[str, NDArray[Any]],
        cache: KVCache,
        output: Callable[[BoundPlan], NDArray[np.float32]],
        keep: Collection[int] = (),
    ) -> tuple[NDArray[np.float32], dict[int, Borders]]:
        """Run the parts from ``first`` on, with the edits of the recorders of the chunks.

        ``begin`` begins a part: always on all threads, because the parts of a step run on the same threads. ``output``
        allocates the output rows of a plan. Returns them, and the received rows of the parts ``keep``.
        """
        kept, rows = dict[int, Borders](), sum(len(chunk.tokens) for chunk in chunks)
        if first and self._before:
            self._before.run(chunks, begin, arrays, cache)
        for number in range(first, len(self.parts)):
            if number in keep:
                kept[number] = [own.copy() for own in self.received(number, rows, arrays)]
            part = self.parts[number]
            own = [_for_part(chunk, part.first, part.stop) for chunk in chunks]
            variant = self._variants[number].of(own)
            out = output(variant) if number == len(self.parts) - 1 else np.empty((0, 0), np.float32)
            variant.run(own, begin, arrays, cache)
        return out, kept

    def received(self, number: int, rows: int, arrays: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """Views of the first ``rows`` rows of the buffers that a part receives."""
        return [rows_of_border(border, rows, arrays) for border in self.parts[number].receives]


def rows_of_border(border: Border, rows: int, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """A view of the first ``rows`` rows of a border's buffer."""
    flat: NDArray[np.float32] = arrays[border.name].reshape(-1)
    return flat[: rows * border.width].reshape(rows, border.width)


def _for_part(chunk: Chunk, first: int, stop: int) -> Chunk:
    """A chunk with the edits of the operations ``first`` to ``stop`` - 1."""
    if chunk.recorder is None:
        return chunk
    watch = _watch_of(chunk.recorder)
    edits = [at for at, edit in enumerate(watch.edits) if first <= edit.operation < stop]
    patterns = [at for at, edit in enumerate(watch.pattern_edits) if first <= edit.operation < stop]
    if not edits and not patterns:
        return replace(chunk, recorder=None)
    own = Watch(
        edits=tuple(replace(watch.edits[at], operation=watch.edits[at].operation - first) for at in edits),
        pattern_edits=tuple(
            replace(watch.pattern_edits[at], operation=watch.pattern_edits[at].operation - first) for at in patterns
        ),
    )
    return replace(chunk, recorder=PartRecorder(chunk.recorder, own, edits, patterns))


def _watch_of(recorder: Recorder) -> Watch:
    assert isinstance(recorder.watch, Watch)
    return recorder.watch


# Compiles the kernels that a model needs for its first answer, before the weights are loaded.
#
# The kernels are compiled in parallel if this saves time.


def compile_kernels(
    checkpoint: Checkpoint, model: Model, plan: Plan, *, samples: bool, progress: CompileProgress | None
) -> None:
    """Compile the kernels that are not cached. ``samples`` is True if this process samples tokens from the logits."""
    sampling = (TOP, SUMS) if samples and model.spec.generates else ()
    kernels = (*plan.kernels(), *LOOP_KERNELS, *packers(checkpoint, model, plan), *sampling)
    if not shared().is_cached(kernels):
        # Imported here because it imports subprocess, which most starts do not need.
        from pellucid.kernels.core.background import compile_in_parallel

        compile_in_parallel(kernels, processors().usable, free_bytes(), progress)
