"""Speculation: tokens that may follow are read together with the last one, and kept as far as they are what comes.

A step reads the weights once, for one token or for several; so a step of eight tokens takes little longer than one. The
rows of a step have the bits that they would have one by one, and each is sampled as it would be: the text is the same,
whatever was proposed.

``PromptLookup`` proposes what followed the last occurrence of the text's end (Yang et al. 2023, "Inference with
reference"; Saxena 2023, "Prompt lookup decoding"). ``Gain`` decides how many tokens are worth it.
"""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.runtime.sequence import MOST_AHEAD

MOST = MOST_AHEAD  # tokens in a step beside the last one
LONGEST, SHORTEST = 4, 2  # tokens of the end that must have occurred; longer ones are tried first
WORTH = 1.03  # what a proposal must be expected to bring: neither costs nor acceptance are known exactly
AT_ONCE = 1024  # tokens that are indexed in a step: 2 ms
SEEN = 0.15  # the weight of the last proposal in the acceptance
PROBED = 24  # steps without a proposal, after which one of a single token shows whether it would pay now


class PromptLookup:
    """Finds where the end of a text has occurred before, in the prompt or in the text itself."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """Up to ``most`` tokens that may follow ``tokens``, which begin with those of the last call."""
        end = len(tokens)
        # The end itself is not indexed: it is what is looked for. A long prompt is indexed in parts, step by step.
        known = min(end - 1, self._indexed + AT_ONCE)
        for stop in range(self._indexed + 1, known + 1):
            for length in range(SHORTEST, min(LONGEST, stop) + 1):
                self._ends[tuple(tokens[stop - length : stop])] = stop
        self._indexed = max(self._indexed, known)
        if most > 0:
            for length in range(min(LONGEST, end), SHORTEST - 1, -1):
                after = self._ends.get(tuple(tokens[end - length :]))
                if after is not None:
                    return _copied(tokens, after, most)
        return []


def _copied(tokens: Sequence[int], start: int, count: int) -> list[int]:
    """``count`` tokens from ``start`` on, of the text with these tokens behind it: a text may repeat its last words."""
    found, end = list[int](), len(tokens)
    for place in range(start, start + count):
        found.append(tokens[place] if place < end else found[place - end])
    return found


class Gain:
    """Decides how many proposed tokens a step reads, from how many were kept and from what steps cost."""

    def __init__(self) -> None:
        self.proposed = self.accepted = 0
        self._acceptance = 0.5  # of a token, if those before it were kept
        self._idle = 0

    def length(self, costs: Sequence[float]) -> int:
        """How many tokens to propose; ``costs[k]`` is the time of the step with k of them.

        The tokens that can be expected of a step, divided by its time, are the most.
        """
        if not costs[0]:  # no step has been measured
            return 0
        expected, best, rate = 1.0, 0, 1 / costs[0]
        for count in range(1, len(costs)):
            expected += self._acceptance**count
            if expected / costs[count] > WORTH * rate:
                best, rate = count, expected / costs[count] / WORTH
        self._idle = 0 if best else self._idle + 1
        if self._idle > PROBED and len(costs) > 1:
            self._idle = 0
            return 1
        return best

    def tell(self, proposed: int, accepted: int) -> None:
        """So many of the proposed tokens were kept."""
        self.proposed, self.accepted = self.proposed + proposed, self.accepted + accepted
        tried = min(accepted + 1, proposed)  # those after the first wrong one were not tried
        for number in range(tried):
            self._acceptance += SEEN * (float(number < accepted) - self._acceptance)
