"""What a step costs: how many tokens of prompts it may have beside others, and what proposed tokens would add."""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.pipeline import Scheduled
from pellucid.runtime.sequence import MOST_AHEAD

ROW = 0.06  # what a row adds to the time of the first, until it is measured
LEAST = 8  # tokens of a prompt in a step, however slow it is: with fewer, each takes much longer
NEW = 0.2  # the weight of the last step in the averages
SLOW = 0.02  # the same, of a step with more rows in the time of one row
EASED = 0.05  # the same, for a prompt's tokens that took less time: the slowest of the last steps count
MARGIN = 0.85  # the part of the target that is planned: the context grows, and the machine has other work
UNUSUAL = 2.0  # a step that takes so many times as long as expected, or as short, counts as this


class Pace:
    """Learns the time of steps. ``target`` is how many seconds a step beside others may take.

    The time of a step is that of its rows, whose logits are sampled, by their number, and a time for each token of a
    prompt. Rows are counted in the time of a step with one: a machine that has other work becomes slower for all of
    them at once, and what was measured at another time still holds.
    """

    def __init__(self, target: float) -> None:
        self.target = target
        self._row = 0.0  # seconds of a step with one row
        self._times: dict[int, float] = {1: 1.0}  # so many times as long takes a step, by its rows
        self._expected: dict[int, float] = {}  # since the last step
        self._token = 0.0
        self.rows = 1  # of the last step

    def tell(self, rows: int, prompt_tokens: int, seconds: float) -> None:
        """A step with so many rows of texts that are made, and tokens of prompts, took ``seconds``."""
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
        """How many tokens of prompts the next step may have beside so many rows."""
        if not rows:
            return most
        if not self._token:  # nothing is known yet
            return min(most, 4 * LEAST)
        left = MARGIN * self.target - self._decode_seconds(rows)
        return max(min(most, int(left / self._token)), LEAST)

    def costs(self, own: int, most: int) -> list[float]:
        """The times of the next step with 0 to ``most`` more rows, for a text that had ``own`` rows in the last one."""
        first = max(self.rows - own, 0) + 1
        for rows in range(first, first + most + 1):
            if rows not in self._expected:
                self._expected[rows] = self._decode_seconds(rows)
        return [self._expected[rows] for rows in range(first, first + most + 1)]

    def _decode_seconds(self, rows: int) -> float:
        """The time of a step without prompts; 0 as long as none has been measured."""
        return self._row * self._rows_take(rows) if rows else 0.0

    def _rows_take(self, rows: int) -> float:
        """How many times as long as one row so many take: as measured, or what the nearest numbers let expect.

        One that was slow for another reason would be avoided and never be measured again. So others bound it: fewer
        rows take no longer than more, and a row no longer than it takes beside fewer.
        """
        nearest = min(self._times, key=lambda known: abs(known - rows))
        times = self._times[nearest] * (1 + ROW * (rows - 1)) / (1 + ROW * (nearest - 1))
        bounds = (taken * max(1.0, rows / known) for known, taken in self._times.items())
        return max(min(times, *bounds), 1.0) if rows else 0.0


def counts(scheduled: Sequence[Scheduled]) -> tuple[int, int]:
    """The number of rows of texts that are made in a step, and of tokens of prompts."""
    rows = prompts = 0
    for one in scheduled:
        tokens = len(one.chunk.tokens)
        if tokens <= 1 + MOST_AHEAD and tokens == one.chunk.outputs:
            rows += tokens
        else:
            prompts += tokens
    return rows, prompts
