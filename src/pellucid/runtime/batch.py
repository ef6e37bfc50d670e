"""The ragged batch of a step: the chunks of tokens of its sequences, and the rows that need logits."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.kernels.core.record import SCRATCH_HEADER, StepRecord
from pellucid.runtime.cache import BlockTable
from pellucid.runtime.memory import address, aligned


class EditEntry(NamedTuple):
    """Changes a value x at a position to ``factor`` * x + ``values`` (None: nothing is added).

    ``values`` has one float32 for each column of the edit.
    """

    position: int
    factor: float
    values: NDArray[np.float32] | None


class PatternChange(NamedTuple):
    """Changes attention scores or patterns x at ``positions`` (n,) to ``factors`` * x + ``addends``.

    Factors (None: 1) and addends (None: 0) are contiguous float32 arrays (n, heads, tokens). With a size of 1 instead
    of n or heads, a row applies to all. A row has a number for each token up to the last token of the step (in cross
    attention: of the source), then any numbers up to a multiple of 32.
    """

    positions: NDArray[np.int64]
    factors: NDArray[np.float32] | None
    addends: NDArray[np.float32] | None


class Recorder(Protocol):
    """Records and changes values of one sequence. The thread that runs the step calls the methods.

    ``watch`` lists the taps and edits (a ``Watch`` of ``plan/passes.py``). A tap records a value, and an edit changes a
    value. Sequences with equal watches share operations.
    """

    @property
    def watch(self) -> Hashable: ...

    def forget(self) -> None:
        """The sequence computes its tokens again, with other values: functions of edits are called again."""
        ...

    @property
    def first_changed(self) -> int | None:
        """The first position whose values edits change; None without edits.

        The keys and values before this position are the keys and values of the tokens without edits.
        """
        ...

    @property
    def first_recorded(self) -> int | None:
        """The first recorded position; None if no position is recorded. Recorded positions are always computed."""
        ...

    def positions(self, start: int, stop: int) -> range:
        """The recorded positions from ``start`` to ``stop`` - 1."""
        ...

    def chunk_end(self, start: int) -> int | None:
        """The position at which a step that begins at ``start`` must end, because a state is changed there, or None."""
        ...

    def changed_state(
        self, number: int, position: int, token: int, state: NDArray[np.float32]
    ) -> NDArray[np.float32] | None:
        """The values that replace a ``state`` (size,) after the token at a position, for state edit ``number``.

        None: the state stays unchanged.
        """
        ...

    def take(self, rows: str, positions: range, values: NDArray[np.float32]) -> None:
        """Receive the values (n, columns) of all taps on buffers with rows of the `RowKind` ``rows``, in tap order."""
        ...

    def take_pattern(self, block: int, positions: range, rows: NDArray[np.float32]) -> None:
        """Receive the rows (n, heads, tokens) of all taps on a block's attention patterns, in tap order."""
        ...

    def take_state(self, number: int, position: int, values: NDArray[np.float32]) -> None:
        """Receive the values of state tap ``number`` after a position. ``values`` is a view of the cache: copy it."""
        ...

    def entries(self, number: int, start: int, stop: int) -> Sequence[EditEntry]:
        """The entries of edit ``number`` for the positions from ``start`` to ``stop`` - 1."""
        ...

    def pattern_positions(self, number: int, start: int, stop: int) -> NDArray[np.int64]:
        """The positions from ``start`` to ``stop`` - 1 whose scores or patterns edit ``number`` changes."""
        ...

    def pattern_change(self, number: int, positions: NDArray[np.int64], keys: int) -> PatternChange:
        """The change of pattern edit ``number`` at its ``positions``. A row of the pattern has ``keys`` weights."""
        ...

    def called_pattern(
        self, number: int, positions: NDArray[np.int64], tokens: NDArray[np.int64], rows: NDArray[np.float32]
    ) -> PatternChange | None:
        """The change of paused pattern edit ``number``. ``rows`` (n, heads, keys) are its scores or patterns."""
        ...

    def called(
        self, number: int, start: int, tokens: Sequence[int], values: NDArray[np.float32]
    ) -> Sequence[EditEntry]:
        """The entries of paused edit ``number``. ``values`` (n, columns) are its values, from position ``start`` on.

        ``tokens`` are the tokens at these positions.
        """
        ...


class Chunk(Struct, frozen=True):
    """The next tokens of one sequence. The step computes logits for the last ``outputs`` tokens.

    ``types`` are the types of the tokens (BERT; None: all tokens have type 0). In an encoder-decoder, a chunk that
    ``encodes`` is a whole source for the encoder, without outputs. ``encoder`` is the block table of the source, which
    cross attention reads. ``recorder`` records and changes values.
    """

    table: BlockTable
    tokens: Sequence[int]
    outputs: int = 1
    encoder: BlockTable | None = None
    recorder: Recorder | None = None
    encodes: bool = False
    types: Sequence[int] | None = None


# Bytes between the work spaces of two threads. A core prefetches the lines that follow the lines that it writes.
# Without a gap it takes them from the core that works there, and attention of encoders takes up to half longer.
SCRATCH_GAP = 1 << 16
STEP_TOKENS, STEP_OUTPUTS, STEP_SEQUENCES = 256, 64, 64
# Tokens of a step that a thread computes alone: enough texts of a paragraph to divide them evenly among two threads.
ALONE_TOKENS = 512


class StepLimits(Struct, frozen=True):
    """Limits of a step: T ``tokens``, R rows of logits (``outputs``), B ``sequences``, and ``context`` in tokens.

    ``joint`` is the limit of the tokens that all threads compute together (0: ``tokens``). A step with more tokens is
    divided. Texts with more tokens than ``unscaled`` have scaled positions (0: all texts have the same positions).
    """

    context: int
    tokens: int = STEP_TOKENS
    outputs: int = STEP_OUTPUTS
    sequences: int = STEP_SEQUENCES
    joint: int = 0
    unscaled: int = 0

    def is_scaled(self, tokens: int) -> bool:
        """True if a text of ``tokens`` tokens has scaled positions."""
        return 0 < self.unscaled < tokens

    @property
    def together(self) -> StepLimits:
        """The limits of a step that all threads compute together."""
        tokens = self.joint or self.tokens
        limits: StepLimits = replace(self, tokens=tokens, outputs=min(self.outputs, tokens), joint=0)
        return limits


def check_step(chunks: Sequence[Chunk], limits: StepLimits) -> None:
    """Raise InvalidRequest if chunks exceed the limits of a step, or a chunk has more outputs than tokens."""
    tokens = outputs = longest = 0
    for chunk in chunks:
        tokens, outputs = tokens + len(chunk.tokens), outputs + chunk.outputs
        longest = max(longest, len(chunk.tokens))
        if not 0 <= chunk.outputs <= len(chunk.tokens):
            raise InvalidRequest(
                f"a chunk of {len(chunk.tokens)} tokens cannot have {chunk.outputs} rows of logits: "
                f"use 0 to {len(chunk.tokens)}"
            )
    for value, limit, what in (
        (tokens, limits.tokens, "tokens"),
        (longest, limits.joint or limits.tokens, "tokens of a sequence"),
        (outputs, limits.outputs, "rows of logits"),
        (len(chunks), limits.sequences, "sequences"),
    ):
        if value > limit:
            raise InvalidRequest(f"a step of {value} {what}; the limit is {limit}: use smaller steps")


def steps_of(chunks: Sequence[Chunk], limits: StepLimits) -> Iterator[list[Chunk]]:
    """Divide chunks into steps, in order. Each chunk must fit into a step."""
    first = 0
    while first < len(chunks):
        part: list[Chunk] = []
        tokens = outputs = 0
        for chunk in chunks[first : first + limits.sequences]:
            tokens, outputs = tokens + len(chunk.tokens), outputs + chunk.outputs
            if part and (tokens > limits.tokens or outputs > limits.outputs):
                break
            part.append(chunk)
        yield part
        first += len(part)


class StepArrays:
    """The arrays that a step's record points to, allocated once for the largest step.

    ``tokens`` T, ``outputs`` R, ``sequences`` B and ``pages`` per sequence are the limits of a step. ``groups`` is the
    number of attention groups of the cache. Each of the ``threads`` threads has ``scratch`` bytes of work space.
    """

    def __init__(
        self, tokens: int, outputs: int, sequences: int, pages: int, scratch: int, threads: int, groups: int = 1
    ) -> None:
        self.limits = (tokens, outputs, sequences)
        self.token_ids = np.zeros(tokens, np.int32)
        self.token_types = np.zeros(tokens, np.int32)
        self.positions = np.zeros(tokens, np.int32)
        self.output_rows = np.zeros(max(outputs, 1), np.int32)
        self.first_row = np.zeros(sequences, np.int32)
        self.row_count = np.zeros(sequences, np.int32)
        self.length = np.zeros(sequences, np.int32)
        self.pages = np.zeros((groups, sequences, pages), np.int32)
        self.encoder_length = np.zeros(sequences, np.int32)
        self.encoder_pages = np.zeros((groups, sequences, pages), np.int32)
        self.states = np.zeros(sequences, np.int32)
        self.next_states = np.zeros(sequences, np.int32)
        # The record's fields have the names of the arrays.
        arrays = {name: address(value) for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        scratch += SCRATCH_GAP
        self._scratch = aligned(scratch * threads)
        self._scratch.reshape(threads, scratch)[:, :SCRATCH_HEADER] = 0
        sizes = {"page_stride": pages, "group_stride": 4 * sequences * pages, "scratch_bytes": scratch}
        fields = {"tokens": 0, "outputs": 0, "sequences": 0, "scratch": address(self._scratch)}
        self.record = np.array(StepRecord.pack(arrays | sizes | fields), np.int64)

    def fill_rows(self, count: int, each: int) -> None:
        """Write a step of ``count`` rows without tokens and pages. All rows are outputs.

        Each sequence has ``each`` rows (0: the step has no sequences).
        """
        self.output_rows[:count] = np.arange(count)
        sequences = count // each if each else 0
        self.first_row[:sequences] = np.arange(sequences) * each
        self.row_count[:sequences] = each
        self.record[:3] = count, count, sequences

    def fill(self, chunks: Sequence[Chunk]) -> tuple[int, int]:
        """Write a batch into the arrays. The pages of its block tables must be allocated. Returns (T, R)."""
        row = output = 0
        for index, chunk in enumerate(chunks):
            table, count = chunk.table, len(chunk.tokens)
            if count == 1:  # the most frequent case avoids the overhead of slices
                self.token_ids[row], self.positions[row] = chunk.tokens[0], table.length
                self.token_types[row] = chunk.types[0] if chunk.types else table.scaled
            else:
                rows = slice(row, row + count)
                self.token_ids[rows] = chunk.tokens
                self.positions[rows] = np.arange(table.length, table.length + count)
                self.token_types[rows] = table.scaled if chunk.types is None else chunk.types
            self.first_row[index], self.row_count[index] = row, count
            self.length[index] = table.length + count
            for pages, blocks in zip(self.pages, table.blocks):
                pages[index, blocks.first : blocks.end] = blocks.pages
            self.states[index], self.next_states[index] = table.state, table.next_state
            self.encoder_length[index] = 0
            if chunk.encoder is not None:
                self.encoder_length[index] = chunk.encoder.length
                for pages, blocks in zip(self.encoder_pages, chunk.encoder.blocks):
                    pages[index, blocks.first : blocks.end] = blocks.pages
            row += count
            for output_row in range(row - chunk.outputs, row):
                self.output_rows[output] = output_row
                output += 1
        self.record[:3] = row, output, len(chunks)
        return row, output


# The edits of a recorder, forwarded by a recorder with another watch.


class ForwardedEdits:
    """The methods of a ``Recorder`` that change values, forwarded to ``recorder``. States are not changed or recorded.

    ``edits`` and ``patterns`` have the number in the watch of ``recorder`` of each edit and each pattern edit of the
    subclass' own watch.
    """

    def __init__(self, recorder: Recorder | None, edits: Sequence[int], patterns: Sequence[int]) -> None:
        self._inner, self._edits, self._patterns = recorder, edits, patterns

    @property
    def _recorder(self) -> Recorder:
        assert self._inner is not None  # a watch without edits makes no calls
        return self._inner

    def forget(self) -> None:
        self._recorder.forget()

    def chunk_end(self, start: int) -> int | None:
        """As in ``Recorder``: states are not changed."""
        return None

    def changed_state(
        self, number: int, position: int, token: int, state: NDArray[np.float32]
    ) -> NDArray[np.float32] | None:
        """As in ``Recorder``: states are not changed."""
        return None

    def take_state(self, number: int, position: int, values: NDArray[np.float32]) -> None:
        """As in ``Recorder``: no state is recorded."""

    def entries(self, number: int, start: int, stop: int) -> Sequence[EditEntry]:
        return self._recorder.entries(self._edits[number], start, stop)

    def called(
        self, number: int, start: int, tokens: Sequence[int], values: NDArray[np.float32]
    ) -> Sequence[EditEntry]:
        return self._recorder.called(self._edits[number], start, tokens, values)

    def pattern_positions(self, number: int, start: int, stop: int) -> NDArray[np.int64]:
        return self._recorder.pattern_positions(self._patterns[number], start, stop)

    def pattern_change(self, number: int, positions: NDArray[np.int64], keys: int) -> PatternChange:
        return self._recorder.pattern_change(self._patterns[number], positions, keys)

    def called_pattern(
        self, number: int, positions: NDArray[np.int64], tokens: NDArray[np.int64], rows: NDArray[np.float32]
    ) -> PatternChange | None:
        return self._recorder.called_pattern(self._patterns[number], positions, tokens, rows)
