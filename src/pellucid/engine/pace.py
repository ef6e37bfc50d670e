"""Costs of a step: the prefill tokens that it may run beside decode rows, and the time that draft tokens add."""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.pipeline import Scheduled
from pellucid.runtime.sequence import MAX_TOKENS_AHEAD

ROW = 0.06  # time that a row adds, relative to the first row, before it is measured
LEAST = 8  # minimum of prefill tokens in a step, even if it is slow: with fewer, each token takes much longer
NEW = 0.2  # weight of the last step in the averages
SLOW = 0.02  # weight of a step with several rows in the time of one row
EASED = 0.05  # weight of a faster prefill: the average follows the slowest of the last steps
MARGIN = 0.85  # part of the target that is planned: the context grows, and the machine has other work
UNUSUAL = 2.0  # limit of the ratio between measured and expected time, in both directions


class Pace:
    """Estimates the time of steps from measurements. ``target`` is the target duration in seconds of a mixed step.

    The time of a step is the time of its decode rows, which depends on their number, plus a time for each prefill
    token. Times of rows are stored relative to a step with one row. Other work on the machine slows all steps equally,
    so older ratios stay valid.
    """

    def __init__(self, target: float) -> None:
        self.target = target
        self._row = 0.0  # seconds of a step with one row
        self._times: dict[int, float] = {1: 1.0}  # relative time of a step by its number of rows
        self._expected: dict[int, float] = {}  # seconds by number of rows, cached until the next measurement
        self._token = 0.0
        self.rows = 1  # number of decode rows of the last step

    def tell(self, rows: int, prompt_tokens: int, seconds: float) -> None:
        """Record that a step with ``rows`` decode rows and ``prompt_tokens`` prefill tokens took ``seconds``."""
        self.rows, self._expected = rows, {}
        if prompt_tokens:
            token = max(seconds - self._decode_seconds(rows), 0.1 * seconds) / prompt_tokens
            self._token = max(token, self._token + EASED * (token - self._token)) if self._token else token
            return
        times = self._rows_take(rows)
        if not self._row:
            self._row = seconds / times
            return
        measured = min(max(seconds / self._row, times / UNUSUAL), times * UNUSUAL)
        if rows > 1:
            self._times[rows] = times + NEW * (measured - times)
        self._row *= 1 + (SLOW if rows > 1 else NEW) * (measured / times - 1)

    def prompt_tokens(self, rows: int, most: int) -> int:
        """Number of prefill tokens that the next step may run beside ``rows`` decode rows, at most ``most``."""
        if not rows:
            return most
        if not self._token:  # nothing is known yet
            return min(most, 4 * LEAST)
        left = MARGIN * self.target - self._decode_seconds(rows)
        return max(min(most, int(left / self._token)), LEAST)

    def costs(self, own: int, most: int) -> list[float]:
        """Seconds of the next step with 0 to ``most`` more rows, for a text that had ``own`` rows in the last step."""
        first = max(self.rows - own, 0) + 1
        for rows in range(first, first + most + 1):
            if rows not in self._expected:
                self._expected[rows] = self._decode_seconds(rows)
        return [self._expected[rows] for rows in range(first, first + most + 1)]

    def _decode_seconds(self, rows: int) -> float:
        """Seconds of a step without prompts; 0 before the first measurement."""
        return self._row * self._rows_take(rows) if rows else 0.0

    def _rows_take(self, rows: int) -> float:
        """Time of a step with ``rows`` rows, relative to one row: measured, or estimated from the nearest number.

        A number of rows with one slow measurement would be avoided, and never be measured again. So other measurements
        bound the estimate: fewer rows take no longer than more rows, and the time per row does not grow with their
        number.
        """
        nearest = min(self._times, key=lambda known: abs(known - rows))
        times = self._times[nearest] * (1 + ROW * (rows - 1)) / (1 + ROW * (nearest - 1))
        bounds = (taken * max(1.0, rows / known) for known, taken in self._times.items())
        return max(min(times, *bounds), 1.0) if rows else 0.0


def counts(scheduled: Sequence[Scheduled]) -> tuple[int, int]:
    """Number of decode rows, and number of prefill tokens, in a step."""
    rows = prompts = 0
    for one in scheduled:
        tokens = len(one.chunk.tokens)
        if tokens <= 1 + MAX_TOKENS_AHEAD and tokens == one.chunk.outputs:
            rows += tokens
        else:
            prompts += tokens
    return rows, prompts
