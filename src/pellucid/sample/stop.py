"""Strings that end a text, wherever the borders of tokens fall.

The text ends before the stop string that is complete first. Text that could still turn out to be the beginning of
one is held back; what is let out is certain. So the result does not depend on how the text is cut into pieces.
"""

from __future__ import annotations


class Stopper:
    """``stops`` are non-empty strings. Of several that are complete at the same character, the longest counts."""

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        self.stops = stops
        self.stopped = False
        self._held = ""

    def push(self, text: str) -> str:
        """More text; returns what is now certain."""
        if self.stopped:
            return ""
        self._held += text
        found = [(at + len(stop), at) for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            _, at = min(found)
            certain, self._held = self._held[:at], ""
            return certain
        keep = self._possible_start()
        certain = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return certain

    def flush(self) -> str:
        """The end of the text: what was held back comes out."""
        certain, self._held = ("" if self.stopped else self._held), ""
        return certain

    def _possible_start(self) -> int:
        """How many of the last characters could begin a stop string."""
        longest = 0
        for stop in self.stops:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest
