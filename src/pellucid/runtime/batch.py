"""A step's ragged batch: which tokens of which sequences run now, and whose logits are wanted."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from pellucid.kernels.record import SCRATCH_HEADER, Step
from pellucid.runtime.cache import KVCache, Sequence
from pellucid.runtime.memory import address, aligned


@dataclass(frozen=True)
class Chunk:
    """The next tokens of one sequence. ``outputs`` is how many of its last rows' logits are wanted.

    ``memory`` is the sequence whose tokens it attends to besides its own: what an encoder has left in the cache.
    """

    sequence: Sequence
    tokens: Seq[int]
    outputs: int = 1
    memory: Sequence | None = None


class StepArrays:
    """The arrays that a step's record points to, allocated once for the largest step.

    ``tokens`` T, ``sequences`` B and ``pages`` of a sequence are the most that a step may have.
    """

    def __init__(
        self, tokens: int, outputs: int, sequences: int, pages: int, scratch: int, threads: int
    ) -> None:
        self.limits = (tokens, outputs, sequences)
        self.token_ids = np.zeros(tokens, np.int32)
        self.positions = np.zeros(tokens, np.int32)
        self.output_rows = np.zeros(max(outputs, 1), np.int32)
        self.first_row = np.zeros(sequences, np.int32)
        self.row_count = np.zeros(sequences, np.int32)
        self.length = np.zeros(sequences, np.int32)
        self.pages = np.zeros((sequences, pages), np.int32)
        self.memory_length = np.zeros(sequences, np.int32)
        self.memory_pages = np.zeros((sequences, pages), np.int32)
        self._scratch = aligned(scratch * threads)
        self._scratch.reshape(threads, scratch)[:, :SCRATCH_HEADER] = 0
        known = {
            "token_ids": address(self.token_ids),
            "positions": address(self.positions),
            "output_rows": address(self.output_rows),
            "first_row": address(self.first_row),
            "row_count": address(self.row_count),
            "length": address(self.length),
            "pages": address(self.pages),
            "memory_length": address(self.memory_length),
            "memory_pages": address(self.memory_pages),
            "page_stride": pages,
            "scratch": address(self._scratch),
            "scratch_bytes": scratch,
        }
        self.record = np.array(Step.pack({"tokens": 0, "outputs": 0, "sequences": 0, **known}), np.int64)

    def fill(self, chunks: Seq[Chunk], cache: KVCache) -> tuple[int, int]:
        """Write a batch into the arrays and give its sequences their pages. Returns (T, R).

        Raises:
            CacheFull: a sequence needs more pages than are free.
        """
        row = output = 0
        for index, chunk in enumerate(chunks):
            sequence, count = chunk.sequence, len(chunk.tokens)
            cache.extend(sequence, count)
            if count == 1:  # much the most often: without the machinery of slices
                self.token_ids[row], self.positions[row] = chunk.tokens[0], sequence.length
            else:
                rows = slice(row, row + count)
                self.token_ids[rows] = chunk.tokens
                self.positions[rows] = np.arange(sequence.length, sequence.length + count)
            self.first_row[index], self.row_count[index] = row, count
            self.length[index] = sequence.length + count
            self.pages[index, : len(sequence.pages)] = sequence.pages
            self.memory_length[index] = 0
            if chunk.memory is not None:
                self.memory_length[index] = chunk.memory.length
                self.memory_pages[index, : len(chunk.memory.pages)] = chunk.memory.pages
            row += count
            for wanted in range(row - chunk.outputs, row):
                self.output_rows[output] = wanted
                output += 1
        self.record[:3] = row, output, len(chunks)  # the record's first fields
        return row, output
