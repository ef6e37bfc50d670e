"""Locates a sequence's rows, and its state in the cache, for the kernels that read and write the state."""

from __future__ import annotations

from typing import Any

from pellucid.kernels.core.record import Address, Record, StepRecord


class StateRecord(Record):
    """Fields of kernels with a state."""

    state: Address  # the layer's state in page 0
    page_bytes: int  # from one page to the next


def state_sequence(simd: Any, at: Any) -> Any:
    """Make the helper that locates a sequence; ``at`` holds the field offsets of the record.

    (record, step, sequence) → (address of the state before the step, or 0 for a new sequence; address of the
    state after the step; the sequence's first row; its number of rows)
    """
    step_at, load, load_i32 = StepRecord.at, simd.load_i64, simd.load_i32

    @simd.jit
    def sequence_of(record, step, sequence):
        state, size, index = load(record + at.state), load(record + at.page_bytes), 4 * sequence
        before = load_i32(load(step + step_at.states) + index)
        after = load_i32(load(step + step_at.next_states) + index)
        first = load_i32(load(step + step_at.first_row) + index)
        count = load_i32(load(step + step_at.row_count) + index)
        source = state + before * size
        if before < 0:
            source = 0
        return source, state + after * size, first, count

    return sequence_of
