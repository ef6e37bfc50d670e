"""Runs kernels of recurrent layers on sequences that grow in steps of any size, with states that change pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from hypothesis import strategies as st

from support.kernels import Batch, assert_guards, guarded

Step: TypeAlias = Callable[[Batch, np.ndarray, int], np.ndarray]
"""(batch, indices of the step's rows among all rows, address of state page 0) → outputs of the step."""

lengths = st.lists(st.integers(1, 12), min_size=1, max_size=4)
cuts = st.lists(st.sampled_from([1, 1, 2, 3, 7]), min_size=1, max_size=12)


def in_steps(step: Step, lengths: list[int], cuts: list[int], state: int, seed: int = 0) -> np.ndarray:
    """Outputs of sequences that grow together by ``cuts`` tokens per step, and then by the remaining tokens.

    ``state`` is the number of values in a sequence's state. The state stays in its page or moves to another page at
    random.
    """
    rng = np.random.default_rng(seed)
    starts = np.cumsum([0, *lengths])
    memory = guarded((2 * len(lengths) + 1, state))
    page, spare = [-1] * len(lengths), list(range(len(memory)))
    done, found = [0] * len(lengths), {}
    for cut in [*cuts, max(lengths)]:
        active = [s for s, length in enumerate(lengths) if done[s] < length]
        if not active:
            break
        counts = [min(cut, lengths[s] - done[s]) for s in active]
        after = [page[s] if page[s] >= 0 and rng.random() < 0.5 else spare.pop(0) for s in active]
        batch = Batch(counts, past=[done[s] for s in active], states=[page[s] for s in active], next_states=after)
        rows = np.concatenate([starts[s] + done[s] + np.arange(n) for s, n in zip(active, counts)])
        found |= dict(zip(rows.tolist(), step(batch, rows, memory.ctypes.data)))
        for s, n, new in zip(active, counts, after):
            if page[s] >= 0 and page[s] != new:
                spare.append(page[s])
                memory[page[s]] = np.nan  # the old page must not be read again
            done[s], page[s] = done[s] + n, new
        assert_guards(memory)
    return np.stack([found[row] for row in range(starts[-1])])
