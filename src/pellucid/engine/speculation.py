"""Speculative decoding: a draft model proposes tokens, a step runs them after the last token, and accepts the right
ones."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from pellucid.engine.model_runner import ModelRunner
from pellucid.errors import CacheFull
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.runtime.cached_sequence import MAX_TOKENS_AHEAD
from pellucid.weights.checkpoint import Checkpoint, stored_bytes

# Speculative decoding: a step runs draft tokens after the last token, and accepts the draft tokens that match.
#
# A step reads the weights once, for any number of tokens. So a step with eight tokens takes little longer than a step
# with one token. The logits of each token are bit-identical to the logits of a step without draft tokens, and each
# token is sampled as usual. So draft tokens never change the text.
#
# ``PromptLookup`` searches the text for the previous occurrence of its last tokens, and proposes the tokens that
# followed this occurrence (Yang et al. 2023, "Inference with reference"; Saxena 2023, "Prompt lookup decoding").
# ``LookupGain`` decides the number of draft tokens.

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


# Draft models: a smaller model with the same vocabulary proposes draft tokens, and the larger model checks them.
#
# Source: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding". A draft token is accepted
# if the larger model samples the same token (``engine/speculation.py``). So the sampling distribution needs no
# correction, and the draft model always proposes its most likely token.
#
# The draft model stops when the estimated probability that all its draft tokens are accepted falls below the relative
# cost of another draft token. ``DraftGain`` decides from past results whether the draft model runs at all.

MAX_CATCH_UP = 16  # a call proposes no draft tokens if more tokens of the text are unread
DRAFT_WEIGHT = 0.05  # weight of the last call in the averages
INITIAL_SHARE = 0.4  # value of ``DraftModel.share`` before the first measurement
PATIENCE = 8  # steps without the draft model before a trial step, which measures the acceptance again
TRIAL_TOKENS = 2  # maximum number of draft tokens of a trial
# Maximum number of tokens of a text that the draft model reads per step. Other requests wait during this time.
TOKENS_PER_STEP = 128


class DraftAverages(Struct):
    """Averages per call: tokens that the draft model computes, and draft tokens that are accepted."""

    computed: float = 4.0
    accepted: float = 3.0

    def record(self, computed: int, accepted: int, weight: float) -> None:
        """Add the numbers of a call to the averages."""
        self.computed += weight * (computed - self.computed)
        self.accepted += weight * (accepted - self.accepted)


class DraftModel:
    """The draft model. The draft model and the larger model share the first ``vocabulary`` tokens.

    ``share`` is the time of a draft token, relative to a step of the larger model with one row.
    """

    def __init__(self, runner: ModelRunner, vocabulary: int, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.runner, self.vocabulary, self.share = runner, vocabulary, INITIAL_SHARE
        self.averages = DraftAverages()
        self.seconds = 0.0
        """Total time of all calls in seconds."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        return stored_bytes(self.checkpoint)

    def close(self) -> None:
        """Close the runner and the file."""
        self.runner.close()
        self.checkpoint.close()

    def logits(self, table: BlockTable, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Run tokens, and return the logits (V,) after the last token. Raises CacheFull."""
        start = time.perf_counter()
        rows = self.runner.forward([Chunk(table, list(tokens), outputs=1)])
        self.seconds += time.perf_counter() - start
        return rows[0, : self.vocabulary]


class DraftSequence:
    """A text in the cache of the draft model."""

    def __init__(self, model: DraftModel) -> None:
        self._model, self._table = model, BlockTable()
        self._read = list[int]()
        self._agreed = 0  # number of leading read tokens that are known to equal the text's tokens
        self.computed = 0
        """Number of tokens that the last call computed."""

    def propose(self, tokens: Sequence[int], most: int, least: float, step_seconds: float) -> list[int] | None:
        """Propose up to ``most`` draft tokens after ``tokens``.

        Stops when the estimated probability that all draft tokens are accepted falls below ``least``. Returns None if
        the draft model has not read the whole text yet (each call reads a part), or cannot read the text.
        """
        runner = self._model.runner
        if len(tokens) + most > runner.limits.context or max(tokens[self._common(tokens) :]) >= self._model.vocabulary:
            return None
        try:
            self._roll_back(tokens)
            new, found, chance = list(tokens[len(self._read) :]), list[int](), 1.0
            self._agreed = min(len(tokens), len(self._read) + TOKENS_PER_STEP)
            if len(new) > MAX_CATCH_UP:
                self._run(new[:TOKENS_PER_STEP])
                return None
            before, self.computed = self._model.seconds, 0
            while len(found) < most:
                logits, self.computed = self._run(new), self.computed + 1
                token = int(logits.argmax())
                chance /= float(np.exp(logits - logits[token]).sum())
                if chance < least:
                    break
                found.append(token)
                new = [token]
            if step_seconds:  # else no step of the larger model has been measured yet
                share = (self._model.seconds - before) / max(self.computed, 1) / step_seconds
                self._model.share += DRAFT_WEIGHT * (min(share, 2 * self._model.share) - self._model.share)
            return found
        except CacheFull:
            self.close()
            return None

    def close(self) -> None:
        """Release the pages to the draft model's prefix cache."""
        self._model.runner.cache.release(self._table, tokens=self._read)
        self._table, self._read, self._agreed = BlockTable(), [], 0

    def _run(self, tokens: list[int]) -> NDArray[np.float32]:
        logits = self._model.logits(self._table, tokens)
        self._read += tokens
        return logits

    def _common(self, tokens: Sequence[int]) -> int:
        """Length of the common prefix of ``tokens`` and the read tokens, at most ``len(tokens) - 1``.

        The read tokens differ from ``tokens`` after draft tokens were rejected.
        """
        most = min(len(self._read), len(tokens) - 1)
        common = min(self._agreed, most)
        while common < most and self._read[common] == tokens[common]:
            common += 1
        return common

    def _roll_back(self, tokens: Sequence[int]) -> None:
        """Drop the read tokens that are not in the text. A new text starts with a prefix from the prefix cache."""
        runner = self._model.runner
        if not self._read:
            scaled = runner.limits.is_scaled(len(tokens))
            self._table = runner.cache.find_prefix(tokens, len(tokens) - 1, scaled=scaled)
            self._read = list(tokens[: self._table.length])
            self._agreed = len(self._read)
        length = runner.cache.truncate(self._table, self._common(tokens))
        del self._read[length:]


class DraftGain:
    """Decides from the average acceptance whether the draft model runs. The first values come from earlier texts."""

    def __init__(self, draft: DraftModel) -> None:
        self.proposed = self.accepted = 0
        self._draft, self._averages = draft, replace(draft.averages)
        self._idle, self._patience, self._is_trial = 0, PATIENCE, False

    def most(self, costs: Sequence[float], others: int) -> int:
        """Maximum number of draft tokens in the next step.

        ``costs[k]`` is the time of a step with k draft tokens. ``others`` is the number of rows of other texts in the
        step.
        """
        if not costs[0] or len(costs) < 2:  # no step has been measured, or the text is at its end
            return 0
        averages, share = self._averages, self._draft.share
        step = costs[min(round(averages.computed), len(costs) - 1)] + averages.computed * share * costs[0]
        if (others + 1 + averages.accepted) / step > MIN_SPEEDUP * (others + 1) / costs[0]:
            self._idle, self._patience = 0, PATIENCE
            return len(costs) - 1
        self._idle += 1
        if self._idle <= self._patience or others:
            return 0
        self._idle, self._patience = 0, 2 * self._patience  # trials become rarer
        self._is_trial = True
        return min(TRIAL_TOKENS, len(costs) - 1)

    def least(self, costs: Sequence[float]) -> float:
        """Minimum probability of acceptance at which a draft token is worth its time."""
        row = (costs[-1] - costs[0]) / (len(costs) - 1)
        return min(self._draft.share + row / costs[0], 0.95)

    def record(self, computed: int, proposed: int, accepted: int) -> None:
        """Record a call: the tokens that the draft model computed, and its proposed and accepted draft tokens."""
        self.proposed, self.accepted = self.proposed + proposed, self.accepted + accepted
        if self._is_trial and accepted == computed:
            self._averages = DraftAverages()
        else:
            self._averages.record(computed, accepted, ACCEPTANCE_WEIGHT)
        self._is_trial = False
        self._draft.averages.record(computed, accepted, DRAFT_WEIGHT)
