"""The prefill tokens of a step: how many a step may run beside its decode rows, and how much time draft tokens add."""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.engine.task import ScheduledChunk
from pellucid.runtime.cached_sequence import MAX_TOKENS_AHEAD

ROW_COST = 0.06  # assumed time that a row adds, relative to the first row, before a measurement
# Minimum number of prefill tokens in a step, even if the step then exceeds its target. With fewer tokens, the time per
# token is much longer.
MIN_PREFILL = 8
PREFILL_SECONDS, MIN_DIVIDED = 0.05, 96
"""Target duration of a step with prompts only, and the tokens that it may have all the same. A request that arrives
waits for the running step, so it should be short. Prompts are as fast in steps of 96 tokens as in longer steps."""
WEIGHT = 0.2  # weight of the last step in the averages
ROWS_WEIGHT = 0.02  # weight of a step with several rows in the average time of one row
# Weight of a faster prefill. It is small, so that the average follows the slowest of the last steps.
FASTER_WEIGHT = 0.05
MARGIN = 0.85  # planned part of the target; the rest is for a growing context and other work on the machine
MAX_RATIO = 2.0  # limit of the ratio between measured and expected time, in both directions


class StepTimes:
    """Estimates the time of steps from measurements. ``target`` is the target duration in seconds of a mixed step.

    The time of a step is the time of its decode rows, which depends on their number, plus a time for each prefill
    token. Times of rows are stored relative to a step with one row. Other work on the machine slows all steps equally,
    so older ratios stay valid.
    """

    def __init__(self, target: float) -> None:
        self.target = target
        self._row_seconds = 0.0  # seconds of a step with one row
        self._times: dict[int, float] = {1: 1.0}  # relative time of a step by its number of rows
        self._relative: dict[int, float] = {}  # estimates by number of rows, until ``_times`` changes
        self._token_seconds = 0.0
        self.rows = 1  # number of decode rows of the last step

    def record(self, rows: int, prefill_tokens: int, seconds: float) -> None:
        """Record that a step with ``rows`` decode rows and ``prefill_tokens`` took ``seconds``."""
        self.rows = rows
        if prefill_tokens:
            token = max(seconds - self._decode_seconds(rows), 0.1 * seconds) / prefill_tokens
            self._token_seconds = (
                max(token, self._token_seconds + FASTER_WEIGHT * (token - self._token_seconds))
                if self._token_seconds
                else token
            )
            return
        times = self._relative_time(rows)
        if not self._row_seconds:
            self._row_seconds = seconds / times
            return
        measured = min(max(seconds / self._row_seconds, times / MAX_RATIO), times * MAX_RATIO)
        if rows > 1:
            self._times[rows] = times + WEIGHT * (measured - times)
            self._relative.clear()
        self._row_seconds *= 1 + (ROWS_WEIGHT if rows > 1 else WEIGHT) * (measured / times - 1)

    def prefill_tokens(self, rows: int, most: int, *, divided: bool = True) -> int:
        """Number of prefill tokens that the next step may run beside ``rows`` decode rows, at most ``most``.

        ``divided`` is False if a prompt must run in one step.
        """
        if not rows:
            if not divided or not self._token_seconds:
                return most
            return min(most, max(int(PREFILL_SECONDS / self._token_seconds), MIN_DIVIDED))
        if not self._token_seconds:  # no prefill has been measured
            return min(most, 4 * MIN_PREFILL)
        left = MARGIN * self.target - self._decode_seconds(rows)
        return max(min(most, int(left / self._token_seconds)), MIN_PREFILL)

    def costs(self, own: int, most: int) -> list[float]:
        """Seconds of the next step with 0 to ``most`` more rows, for a text that had ``own`` rows in the last step."""
        first = max(self.rows - own, 0) + 1
        return [self._decode_seconds(rows) for rows in range(first, first + most + 1)]

    def _decode_seconds(self, rows: int) -> float:
        """Seconds of a step without prompts; 0 before the first measurement."""
        return self._row_seconds * self._relative_time(rows) if rows else 0.0

    def _relative_time(self, rows: int) -> float:
        """Time of a step with ``rows`` rows, relative to one row, from the measurement of the nearest number of rows.

        After one slow measurement, steps with this number of rows would be avoided and never be measured again. So
        other measurements bound the estimate: fewer rows take no longer than more rows, and the time per row does not
        grow with the number of rows.
        """
        if rows in self._relative:
            return self._relative[rows]
        nearest = min(self._times, key=lambda known: abs(known - rows))
        times = self._times[nearest] * (1 + ROW_COST * (rows - 1)) / (1 + ROW_COST * (nearest - 1))
        bounds = (taken * max(1.0, rows / known) for known, taken in self._times.items())
        self._relative[rows] = max(min(times, *bounds), 1.0) if rows else 0.0
        return self._relative[rows]


def counts(scheduled: Sequence[ScheduledChunk]) -> tuple[int, int]:
    """Number of decode rows, and number of prefill tokens, in a step."""
    rows = prompts = 0
    for one in scheduled:
        tokens = len(one.chunk.tokens)
        if tokens <= 1 + MAX_TOKENS_AHEAD and tokens == one.chunk.outputs:
            rows += tokens
        else:
            prompts += tokens
    return rows, prompts
