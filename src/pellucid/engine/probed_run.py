"""Runs a prompt with a probe of its own, in the engine's thread, between the steps of requests."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from pellucid.engine.model_runner import ModelRunner
from pellucid.engine.probe import raise_of
from pellucid.runtime.batch import Chunk, Probe
from pellucid.runtime.cache import BlockTable


def probed_run(
    runner: ModelRunner, ids: Sequence[int], probe: Probe, first_output: int
) -> Generator[NDArray[np.float32], None, None]:
    """Yield the outputs (n, V) from position ``first_output`` on, step by step (n may be 0).

    Raises:
        InvalidRequest: an edit of the probe fails.
        CacheFull: no pages are left.
    """
    limits = runner.limits.together
    table = BlockTable(scaled=limits.is_scaled(len(ids)))
    try:
        while table.length < len(ids):
            start = table.length
            stop = min(start + limits.tokens, len(ids), max(first_output, start) + limits.outputs)
            chunk = Chunk(table, ids[start:stop], max(0, stop - max(first_output, start)), probe=probe)
            outputs = runner.forward([chunk])
            raise_of(probe)
            yield outputs
    finally:
        runner.cache.release(table)
