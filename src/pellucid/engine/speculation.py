"""Speculative decoding: a step runs draft tokens after the last token, and accepts the draft tokens that match.

A step reads the weights once, for any number of tokens. So a step with eight tokens takes little longer than a step
with one token. The logits of each token are bit-identical to the logits of a step without draft tokens, and each token
is sampled as usual. So draft tokens never change the text.

``PromptLookup`` searches the text for the previous occurrence of its last tokens, and proposes the tokens that followed
this occurrence (Yang et al. 2023, "Inference with reference"; Saxena 2023, "Prompt lookup decoding"). ``LookupGain``
decides the number of draft tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.runtime.cached_sequence import MAX_TOKENS_AHEAD

MAX_DRAFT_TOKENS = MAX_TOKENS_AHEAD  # maximum number of draft tokens in a step
# The last 4 tokens of the text are looked up first, then the last 3, then the last 2.
MAX_MATCH, MIN_MATCH = 4, 2
# Minimum expected speedup for draft tokens. It is above 1 because costs and acceptance are estimates.
MIN_SPEEDUP = 1.03
INDEXED_PER_STEP = 1024  # maximum number of tokens that are indexed in a step, which takes 2 ms
ACCEPTANCE_WEIGHT = 0.15  # weight of the last draft token in the average acceptance
STEPS_TO_TRIAL = 24  # steps without draft tokens before a trial with a single draft token


class PromptLookup:
    """Finds the previous occurrence of the last tokens of a text, in the prompt or in the generated text."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """Propose up to ``most`` draft tokens after ``tokens``. The tokens begin with the tokens of the last call."""
        end = len(tokens)
        # The end of the text is not indexed yet, because the lookup would find the end itself. A long prompt is indexed
        # in parts, step by step.
        known = min(end - 1, self._indexed + INDEXED_PER_STEP)
        for stop in range(self._indexed + 1, known + 1):
            for length in range(MIN_MATCH, min(MAX_MATCH, stop) + 1):
                self._ends[tuple(tokens[stop - length : stop])] = stop
        self._indexed = max(self._indexed, known)
        if most > 0:
            for length in range(min(MAX_MATCH, end), MIN_MATCH - 1, -1):
                after = self._ends.get(tuple(tokens[end - length :]))
                if after is not None:
                    return _copy_tokens(tokens, after, most)
        return []


def _copy_tokens(tokens: Sequence[int], start: int, count: int) -> list[int]:
    """Copy ``count`` tokens from ``start`` on. Past the end of the text, copying continues with the copied tokens."""
    found, end = list[int](), len(tokens)
    for place in range(start, start + count):
        found.append(tokens[place] if place < end else found[place - end])
    return found


class LookupGain:
    """Decides the number of draft tokens of a step, from the acceptance so far and the costs of steps."""

    def __init__(self) -> None:
        self.proposed = self.accepted = 0
        # Probability that a draft token is accepted if all earlier draft tokens of the step were accepted.
        self._acceptance = 0.5
        self._idle = 0

    def length(self, costs: Sequence[float]) -> int:
        """Number of draft tokens to propose. ``costs[k]`` is the time of a step with k draft tokens.

        The number maximizes the expected tokens per second: the expected tokens of a step, divided by its time.
        """
        if not costs[0]:  # no step has been measured
            return 0
        expected, best, rate = 1.0, 0, 1 / costs[0]
        for count in range(1, len(costs)):
            expected += self._acceptance**count
            if expected / costs[count] > MIN_SPEEDUP * rate:
                best, rate = count, expected / costs[count] / MIN_SPEEDUP
        self._idle = 0 if best else self._idle + 1
        if self._idle > STEPS_TO_TRIAL and len(costs) > 1:
            self._idle = 0
            return 1
        return best

    def record(self, proposed: int, accepted: int) -> None:
        """Record the results of a step: ``accepted`` of the ``proposed`` draft tokens were accepted."""
        self.proposed, self.accepted = self.proposed + proposed, self.accepted + accepted
        tried = min(accepted + 1, proposed)  # tokens after the first rejected token were not checked
        for number in range(tried):
            self._acceptance += ACCEPTANCE_WEIGHT * (float(number < accepted) - self._acceptance)
