"""What a step costs: how many tokens of prompts it may have beside others, and what proposed tokens would add."""

from __future__ import annotations

ROW = 0.06  # what a row adds to the time of the first, until it is measured
LEAST = 16  # tokens of a prompt in a step, however slow it is: a prompt must come to an end
NEW = 0.2  # the weight of the last step in the averages
EASED = 0.05  # the same, for a prompt's tokens that took less time: the slowest of the last steps count
MARGIN = 0.85  # the part of the target that is planned: the context grows, and the machine has other work


class Pace:
    """Learns the time of steps. ``target`` is how many seconds a step beside others may take.

    The time of a step is that of its rows, whose logits are sampled, by their number, and a time for each token of a
    prompt.
    """

    def __init__(self, target: float) -> None:
        self.target = target
        self._decode: dict[int, float] = {}
        self._expected: dict[int, float] = {}  # since the last step
        self._token = 0.0
        self.rows = 1  # of the last step

    def tell(self, rows: int, prompt_tokens: int, seconds: float) -> None:
        """A step with so many rows of texts that are made, and tokens of prompts, took ``seconds``."""
        self.rows, self._expected = rows, {}
        if not prompt_tokens:
            known = self._decode.get(rows, seconds)
            self._decode[rows] = known + NEW * (seconds - known)
            return
        token = max(seconds - self._decode_seconds(rows), 0.1 * seconds) / prompt_tokens
        self._token = max(token, self._token + EASED * (token - self._token)) if self._token else token

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
        """The time of a step without prompts: what was measured, or what the nearest numbers of rows let expect."""
        if not self._decode or not rows:
            return 0.0
        if rows in self._decode:
            return self._decode[rows]
        nearest = min(self._decode, key=lambda known: abs(known - rows))
        return self._decode[nearest] * (1 + ROW * (rows - 1)) / (1 + ROW * (nearest - 1))
