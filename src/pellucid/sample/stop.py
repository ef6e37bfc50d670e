"""Stop criteria besides the model's end tokens: stop strings, a time limit, a token limit.

Stop strings are found across token boundaries. The text ends before the stop string that is complete first. Text that
may begin a stop string is held back until the following text decides. So the result does not depend on how the text is
divided into tokens.
"""

from __future__ import annotations

import math
import time


class StopStrings:
    """Finds stop strings in a stream of text. If several are complete at the same character, the longest counts.

    ``stops`` are non-empty strings. ``found`` is the stop string that was found, or None.
    """

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        self.stops = stops
        self.found: str | None = None
        self._held = ""

    @property
    def held(self) -> str:
        """The text that is held back."""
        return self._held

    @property
    def stopped(self) -> bool:
        """True if a stop string was found."""
        return self.found is not None

    def push(self, text: str) -> str:
        """Add text. Returns the text that is now certain."""
        if self.stopped:
            return ""
        self._held += text
        matches = [(at + len(stop), at, stop) for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if matches:
            _, at, self.found = min(matches)
            certain, self._held = self._held[:at], ""
            return certain
        keep = self._possible_start()
        certain = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return certain

    def flush(self) -> str:
        """End the text. Returns the text that was held back."""
        certain, self._held = ("" if self.stopped else self._held), ""
        return certain

    def _possible_start(self) -> int:
        """The number of trailing characters that may begin a stop string."""
        longest = 0
        for stop in self.stops:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest


class StopCriteria:
    """Decides after each token's text whether the whole text ends, and names the reason.

    ``max_time`` is in seconds from ``start``.
    """

    def __init__(self, stops: tuple[str, ...] = (), max_time: float | None = None) -> None:
        self._stop_strings = StopStrings(stops)
        self._max_time, self._deadline = max_time, math.inf

    def start(self) -> None:
        """Start the time limit."""
        if self._max_time is not None:
            self._deadline = time.perf_counter() + self._max_time

    @property
    def found(self) -> str | None:
        """The stop string that was found, or None."""
        return self._stop_strings.found

    @property
    def held(self) -> str:
        """The end of the text so far, which may begin a stop string."""
        return self._stop_strings.held

    def push(self, text: str, last: bool) -> tuple[str, str | None]:
        """Add text. Returns the part that is now certain, and the reason if the text ends. ``last`` ends the text."""
        certain, reason = self._stop_strings.push(text), None
        if self._stop_strings.stopped:
            return certain, "stop"
        if last:
            reason = "length"
        elif self._max_time is not None and time.perf_counter() >= self._deadline:
            reason = "time"
        return (certain + self._stop_strings.flush() if reason else certain), reason

    def flush(self, text: str) -> str:
        """Add ``text`` as the last text, because the model ended the text. Returns the held-back text and ``text``."""
        return self._stop_strings.push(text) + self._stop_strings.flush()
