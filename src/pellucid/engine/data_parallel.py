"""Data parallelism: each thread runs the plan for some sequences of a step alone.

The threads of a plan wait for each other after most operations, and read what other threads have written. For an
encoder with narrow layers this takes up to a fifth of the time on two cores, and more on many cores. Threads that run
different sequences share only the weights and the cache. Results have the same bits, because a sequence's result
depends neither on the threads nor on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pellucid.engine.context_memory import rows_of
from pellucid.plan.bind import Arrays, allocate, places
from pellucid.plan.plan import At, Plan
from pellucid.runtime.batch import Chunk, StepArrays, StepLimits
from pellucid.runtime.executor import Executor, Program
from pellucid.runtime.memory import address

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
        kept = {
            name for name in made if name in self._plan.buffers and self._plan.buffers[name].rows == "once"
        }
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
