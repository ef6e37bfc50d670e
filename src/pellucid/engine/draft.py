"""Draft models: a smaller model with the same vocabulary proposes draft tokens, and the larger model checks them.

Source: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding". A draft token is accepted if
the larger model samples the same token (``engine/speculation.py``). So the sampling distribution needs no correction,
and the draft model always proposes its most likely token.

The draft model stops when the estimated probability that all its draft tokens are accepted falls below the relative
cost of another draft token. ``DraftGain`` decides from past results whether the draft model runs at all.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from pellucid.engine.model_runner import ModelRunner
from pellucid.engine.speculation import ACCEPTANCE_WEIGHT, MIN_SPEEDUP
from pellucid.errors import CacheFull
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.weights.checkpoint import Checkpoint, stored_bytes

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

    def propose(
        self, tokens: Sequence[int], most: int, least: float, step_seconds: float
    ) -> list[int] | None:
        """Propose up to ``most`` draft tokens after ``tokens``.

        Stops when the estimated probability that all draft tokens are accepted falls below ``least``. Returns None if
        the draft model has not read the whole text yet (each call reads a part), or cannot read the text.
        """
        runner = self._model.runner
        if (
            len(tokens) + most > runner.limits.context
            or max(tokens[self._common(tokens) :]) >= self._model.vocabulary
        ):
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
