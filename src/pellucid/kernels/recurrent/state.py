"""Locates a sequence's state in the cache, for the kernels that read and write it."""

from __future__ import annotations

from typing import Any

from pellucid.kernels.core.record import StepRecord

STATE_FIELDS = ("state", "page_bytes")
"""Fields of a record with a state: the address of the state in page 0, and the bytes from one page to the next."""


def places(simd: Any, at: Any) -> Any:
    """Make the helper that locates a sequence's state; ``at`` holds the field offsets of the record.

    (record, step, sequence) → (address of the state before the step, or 0 for a new sequence; address after the step)
    """
    step_at, load, load_i32 = StepRecord.at, simd.load_i64, simd.load_i32

    @simd.jit
    def places_of(record, step, sequence):
        state, size = load(record + at.state), load(record + at.page_bytes)
        before = load_i32(load(step + step_at.states) + 4 * sequence)
        after = load_i32(load(step + step_at.next_states) + 4 * sequence)
        source = state + before * size
        if before < 0:
            source = 0
        return source, state + after * size

    return places_of
