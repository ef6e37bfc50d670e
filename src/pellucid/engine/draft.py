"""A draft model: a smaller one with the same vocabulary, which proposes tokens for a larger one to check.

Source: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding". A proposed token is kept if
it is the one that is sampled (``engine/speculation.py``), so the draft takes the most likely tokens, and no
distribution has to be corrected.

It proposes while the next token is worth its time: the probability that all tokens so far are kept, as the draft sees
it, against what a token costs otherwise. ``DraftGain`` decides whether it is asked at all, from what came of it so far.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from pellucid.engine.model_runner import ModelRunner
from pellucid.engine.speculation import SEEN, WORTH
from pellucid.errors import CacheFull
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable

CAUGHT_UP = 16  # tokens that are read together with the first that is proposed
SLOW = 0.05  # the weight of the last call in the share
FIRST_SHARE = 0.4  # until it is measured
PATIENCE = 8  # steps without the draft, after which it is tried
TRIED = 2  # tokens of a call that shows whether it would pay now
AT_ONCE = 128  # tokens of a text that are read in a step of the larger model: others wait for it


class Usual(Struct):
    """What usually comes of a call, as averages: the tokens that the draft makes, and those that are kept."""

    asked: float = 4.0
    kept: float = 3.0

    def tell(self, asked: int, kept: int, weight: float) -> None:
        """Add a call."""
        self.asked += weight * (asked - self.asked)
        self.kept += weight * (kept - self.kept)


class DraftModel:
    """The model that proposes; only the first ``vocabulary`` of its tokens are tokens of the larger model too.

    ``share`` is the time of a token, in steps of the larger model with one row.
    """

    def __init__(self, runner: ModelRunner, vocabulary: int) -> None:
        self.runner, self.vocabulary, self.share = runner, vocabulary, FIRST_SHARE
        self.usual = Usual()
        self.seconds = 0.0
        """Time that it has taken altogether."""

    def logits(self, table: BlockTable, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Read tokens, and return the logits (V,) after them. Raises CacheFull."""
        start = time.perf_counter()
        rows = self.runner.forward([Chunk(table, list(tokens), outputs=1)])
        self.seconds += time.perf_counter() - start
        return rows[0, : self.vocabulary]


class DraftText:
    """A text as the draft model reads it."""

    def __init__(self, model: DraftModel) -> None:
        self._model, self._table = model, BlockTable()
        self._read = list[int]()
        self._sure = 0  # so many tokens of the text are known to have been read
        self.asked = 0
        """Tokens that the last call made."""

    def propose(
        self, tokens: Sequence[int], most: int, least: float, step_seconds: float
    ) -> list[int] | None:
        """Up to ``most`` tokens that may follow ``tokens``, while they are all kept with a probability above ``least``.

        None, if it has not read the text yet: it reads a part of it each time.
        """
        runner = self._model.runner
        if (
            len(tokens) + most > runner.limits.context
            or max(tokens[self._common(tokens) :]) >= self._model.vocabulary
        ):
            return None
        try:
            self._go_back(tokens)
            new, found, chance = list(tokens[len(self._read) :]), list[int](), 1.0
            self._sure = min(len(tokens), len(self._read) + AT_ONCE)
            if len(new) > CAUGHT_UP:
                self._take(new[:AT_ONCE])
                return None
            before, self.asked = self._model.seconds, 0
            while len(found) < most:
                logits, self.asked = self._take(new), self.asked + 1
                token = int(logits.argmax())
                chance /= float(np.exp(logits - logits[token]).sum())
                if chance < least:
                    break
                found.append(token)
                new = [token]
            if step_seconds:  # else no step of the model has been measured yet
                share = (self._model.seconds - before) / max(self.asked, 1) / step_seconds
                self._model.share += SLOW * (min(share, 2 * self._model.share) - self._model.share)
            return found
        except CacheFull:
            self.close()
            return None

    def close(self) -> None:
        """Leave what it has read to other texts."""
        self._model.runner.cache.release(self._table, tokens=self._read)
        self._table, self._read, self._sure = BlockTable(), [], 0

    def _take(self, tokens: list[int]) -> NDArray[np.float32]:
        logits = self._model.logits(self._table, tokens)
        self._read += tokens
        return logits

    def _common(self, tokens: Sequence[int]) -> int:
        """How many of the tokens have been read, at most all but the last: others were proposed and not kept."""
        most = min(len(self._read), len(tokens) - 1)
        common = min(self._sure, most)
        while common < most and self._read[common] == tokens[common]:
            common += 1
        return common

    def _go_back(self, tokens: Sequence[int]) -> None:
        """Drop what was read and is not in the text; begin with what other texts have left."""
        runner = self._model.runner
        if not self._read:
            self._table = runner.cache.find_prefix(tokens, len(tokens) - 1)
            self._read = list(tokens[: self._table.length])
            self._sure = len(self._read)
        length = runner.cache.truncate(self._table, self._common(tokens))
        del self._read[length:]


class DraftGain:
    """Decides whether the draft model is asked for a text, from what has come of it: at first in other texts."""

    def __init__(self, draft: DraftModel) -> None:
        self.proposed = self.accepted = 0
        self._draft, self._usual = draft, replace(draft.usual)
        self._idle, self._patience, self._tries = 0, PATIENCE, False

    def most(self, costs: Sequence[float], others: int) -> int:
        """How many tokens to ask for now.

        ``costs[k]`` is the time of a step with k proposed tokens, ``others`` is how many rows it has of other texts.
        """
        if not costs[0] or len(costs) < 2:  # no step has been measured, or the text is at its end
            return 0
        usual, share = self._usual, self._draft.share
        step = costs[min(round(usual.asked), len(costs) - 1)] + usual.asked * share * costs[0]
        if (others + 1 + usual.kept) / step > WORTH * (others + 1) / costs[0]:
            self._idle, self._patience = 0, PATIENCE
            return len(costs) - 1
        self._idle += 1
        if self._idle <= self._patience or others:
            return 0
        self._idle, self._patience = 0, 2 * self._patience  # it is tried less and less often
        self._tries = True
        return min(TRIED, len(costs) - 1)

    def least(self, costs: Sequence[float]) -> float:
        """The probability of being kept that a token must have to be worth its time."""
        row = (costs[-1] - costs[0]) / (len(costs) - 1)
        return min(self._draft.share + row / costs[0], 0.95)

    def tell(self, asked: int, proposed: int, accepted: int) -> None:
        """It has made so many tokens, of which so many were proposed and kept."""
        self.proposed, self.accepted = self.proposed + proposed, self.accepted + accepted
        if self._tries and accepted == asked:
            self._usual = Usual()
        else:
            self._usual.tell(asked, accepted, SEEN)
        self._tries = False
        self._draft.usual.tell(asked, accepted, SLOW)
