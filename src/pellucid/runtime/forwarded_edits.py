"""The edits of a probe, forwarded by a probe with another watch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pellucid.runtime.batch import EditEntry, PatternChange, Probe


class ForwardedEdits:
    """The methods of a ``Probe`` that change values, forwarded to ``probe``. States are not changed or recorded.

    ``edits`` and ``patterns`` have the number in the watch of ``probe`` of each edit and each pattern edit of the
    subclass' own watch.
    """

    def __init__(self, probe: Probe | None, edits: Sequence[int], patterns: Sequence[int]) -> None:
        self._inner, self._edits, self._patterns = probe, edits, patterns

    @property
    def _probe(self) -> Probe:
        assert self._inner is not None  # a watch without edits makes no calls
        return self._inner

    def forget(self) -> None:
        """As in ``Probe``."""
        self._probe.forget()

    def chunk_end(self, start: int) -> int | None:
        """As in ``Probe``: states are not changed."""
        return None

    def changed_state(
        self, number: int, position: int, token: int, state: NDArray[np.float32]
    ) -> NDArray[np.float32] | None:
        """As in ``Probe``: states are not changed."""
        return None

    def take_state(self, number: int, position: int, values: NDArray[np.float32]) -> None:
        """As in ``Probe``: no state is recorded."""

    def entries(self, number: int, start: int, stop: int) -> Sequence[EditEntry]:
        """As in ``Probe``."""
        return self._probe.entries(self._edits[number], start, stop)

    def called(
        self, number: int, start: int, tokens: Sequence[int], values: NDArray[np.float32]
    ) -> Sequence[EditEntry]:
        """As in ``Probe``."""
        return self._probe.called(self._edits[number], start, tokens, values)

    def pattern_positions(self, number: int, start: int, stop: int) -> NDArray[np.int64]:
        """As in ``Probe``."""
        return self._probe.pattern_positions(self._patterns[number], start, stop)

    def pattern_change(self, number: int, positions: NDArray[np.int64], keys: int) -> PatternChange:
        """As in ``Probe``."""
        return self._probe.pattern_change(self._patterns[number], positions, keys)

    def called_pattern(
        self, number: int, positions: NDArray[np.int64], tokens: NDArray[np.int64], rows: NDArray[np.float32]
    ) -> PatternChange | None:
        """As in ``Probe``."""
        return self._probe.called_pattern(self._patterns[number], positions, tokens, rows)
