"""Edited copies of a prompt: the outputs after its last token, with the edits of each copy.

The prompt runs once. A copy begins at the first block and at the first position that its edits change, with the values
of the prompt there. Copies that begin at the same block run together. The bits are the bits of a request with the
edits.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.engine.model_runner import ModelRunner
from pellucid.engine.programs import Borders
from pellucid.engine.recorder import EngineRecorder, raise_of, refuse_changed
from pellucid.errors import CacheFull
from pellucid.plan.passes import Watch
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable

Outputs = list[tuple[int, NDArray[np.float32]]]
"""The numbers of copies with their outputs (V,)."""


class EditedCopy(Struct, frozen=True):
    """A copy of a prompt. ``recorder`` applies its edits, after the edits of the prompt itself.

    ``watch`` has the copy's own edits, which begin at position ``first``.
    """

    recorder: EngineRecorder
    watch: Watch
    first: int


class _Copy(Struct):
    """A copy that waits or runs: ``table`` holds the tokens that it has read."""

    number: int
    edited: EditedCopy
    table: BlockTable


class EditedCopies:
    """Runs copies of the prompt ``ids``. ``base`` applies edits of the prompt itself (None: it has no edits)."""

    def __init__(
        self, runner: ModelRunner, ids: Sequence[int], copies: Sequence[EditedCopy], base: EngineRecorder | None
    ) -> None:
        self._runner, self._ids, self._copies, self._base = runner, ids, copies, base
        self._limits = runner.limits.together
        self._scaled = self._limits.is_scaled(len(ids))
        self._table = BlockTable(scaled=self._scaled)

    def run(self) -> Generator[Outputs, None, None]:
        """Yield the outputs of the copies of a step. The first outputs are the prompt's own, with the number -1.

        Raises:
            InvalidRequest: an edit fails.
            CacheFull: no pages are left for a copy.
        """
        parts = self._runner.block_programs()
        groups = dict[int, list[_Copy]]()
        for number, copy in enumerate(self._copies):
            groups.setdefault(parts.first_part(copy.watch), []).append(
                _Copy(number, copy, BlockTable(scaled=self._scaled))
            )
        try:
            logits, received = self._run_prompt(groups.keys() - {0})
            yield [(-1, logits)]
            for part, group in sorted(groups.items()):
                waiting = sorted(group, key=lambda copy: copy.edited.first)
                while waiting:
                    step, waiting = self._next_step(waiting)
                    yield from self._run_step(part, step, received.get(part, []))
        finally:
            self._runner.cache.release(self._table)

    def _run_prompt(self, keep: set[int]) -> tuple[NDArray[np.float32], dict[int, Borders]]:
        """Run the prompt. Returns its output, and the rows that the parts ``keep`` receive.

        Without edits its pages go to the prefix cache. With edits they stay in ``_table``.
        """
        table, kept, ids = self._table, list[dict[int, Borders]](), self._ids
        while table.length < len(ids):
            stop = min(table.length + self._limits.tokens, len(ids))
            chunk = Chunk(table, ids[table.length : stop], int(stop == len(ids)), recorder=self._base)
            outputs, received = self._runner.forward_parts([chunk], 0, (), keep)
            kept.append(received)
            self._check(self._base, outputs)
        if self._base is None:
            self._table = BlockTable()
            self._runner.cache.release(table, tokens=ids)
        return outputs[0], {part: [np.concatenate(rows) for rows in zip(*(own[part] for own in kept))] for part in keep}

    def _prefix(self, most: int) -> BlockTable:
        """A block table with at most the first ``most`` tokens of the prompt, without its last token."""
        most = min(most, len(self._ids) - 1)
        if self._base is None:
            return self._runner.cache.find_prefix(self._ids, most, scaled=self._scaled)
        table = self._runner.cache.fork(self._table)
        self._runner.cache.truncate(table, most)
        return table

    def _next_step(self, copies: list[_Copy]) -> tuple[list[_Copy], list[_Copy]]:
        """Take the copies of the next step. Returns them, and the copies that are left."""
        tokens, step = 0, list[_Copy]()
        for copy in copies[: min(self._limits.sequences, self._limits.outputs)]:
            copy.table = self._prefix(copy.edited.first)
            tokens += len(self._ids) - copy.table.length
            if step and tokens > self._limits.tokens:
                self._runner.cache.truncate(copy.table, 0)
                break
            step.append(copy)
        return step, copies[len(step) :]

    def _run_step(self, part: int, copies: Sequence[_Copy], received: Borders) -> Generator[Outputs, None, None]:
        """Run copies from a part on. If the cache has too few pages for all of them, they run in several steps."""
        try:
            outputs = self._outputs(part, copies, received)
        except CacheFull:
            if len(copies) == 1:
                raise
            half = len(copies) // 2
            for some in (copies[:half], copies[half:]):
                for copy in some:
                    self._runner.cache.truncate(copy.table, 0)
                    copy.table = self._prefix(copy.edited.first)
                yield from self._run_step(part, some, received)
            return
        finally:
            for copy in copies:
                self._runner.cache.truncate(copy.table, 0)
        for copy, row in zip(copies, outputs):
            self._check(copy.edited.recorder, row)
        yield [(copy.number, row) for copy, row in zip(copies, outputs)]

    def _outputs(self, part: int, copies: Sequence[_Copy], received: Borders) -> NDArray[np.float32]:
        """The outputs (n, V) of copies. A copy that is longer than a step runs in several steps."""
        most, ids = self._limits.tokens, self._ids
        chunk_of: Callable[[_Copy], Chunk] = partial(_next_chunk, ids, most)
        while True:
            chunks = [chunk_of(copy) for copy in copies]
            rows = [np.concatenate([own[one.table.length :][: len(one.tokens)] for one in chunks]) for own in received]
            outputs, _ = self._runner.forward_parts(chunks, part, rows)
            if copies[0].table.length == len(ids):
                return outputs

    def _check(self, recorder: EngineRecorder | None, outputs: NDArray[np.float32]) -> None:
        raise_of(recorder)
        if outputs.size and not np.isfinite(outputs.sum()):
            refuse_changed(recorder, "the outputs are not finite")


def _next_chunk(ids: Sequence[int], most: int, copy: _Copy) -> Chunk:
    first = copy.table.length
    outputs = int(first + most >= len(ids))
    return Chunk(copy.table, ids[first : first + most], outputs, recorder=copy.edited.recorder)
