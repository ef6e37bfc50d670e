"""Draft models: a smaller model with the same vocabulary proposes draft tokens, and the larger model checks them.

Source: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding". A draft token is accepted if
the larger model samples the same token (``engine/speculation.py``). So the draft model always proposes its most likely
token, and no distribution needs a correction.

The draft model continues while the next draft token is worth its time. It compares its own estimate that all draft
tokens so far are accepted with the cost of one more. ``DraftGain`` decides from past results whether to ask it at all.
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

CAUGHT_UP = 16  # unread tokens that the draft model may read in the call that proposes
SLOW = 0.05  # weight of the last call in the averages
FIRST_SHARE = 0.4  # share before it is measured
PATIENCE = 8  # steps without the draft model before a trial
TRIED = 2  # draft tokens of a trial
AT_ONCE = 128  # tokens of a text that the draft model reads per step: other requests wait meanwhile


class Usual(Struct):
    """Averages over calls: tokens that the draft model computes, and tokens that are accepted."""

    asked: float = 4.0
    kept: float = 3.0

    def tell(self, asked: int, kept: int, weight: float) -> None:
        """Add a call."""
        self.asked += weight * (asked - self.asked)
        self.kept += weight * (kept - self.kept)


class DraftModel:
    """The draft model. The larger model shares only its first ``vocabulary`` tokens.

    ``share`` is the time of a draft token, relative to a step of the larger model with one row.
    """

    def __init__(self, runner: ModelRunner, vocabulary: int) -> None:
        self.runner, self.vocabulary, self.share = runner, vocabulary, FIRST_SHARE
        self.usual = Usual()
        self.seconds = 0.0
        """Total time in seconds."""

    def logits(self, table: BlockTable, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Run tokens, and return the logits (V,) after them. Raises CacheFull."""
        start = time.perf_counter()
        rows = self.runner.forward([Chunk(table, list(tokens), outputs=1)])
        self.seconds += time.perf_counter() - start
        return rows[0, : self.vocabulary]


class DraftText:
    """A text in the cache of the draft model."""

    def __init__(self, model: DraftModel) -> None:
        self._model, self._table = model, BlockTable()
        self._read = list[int]()
        self._sure = 0  # number of first read tokens that are known to agree with the text
        self.asked = 0
        """Number of tokens that the last call computed."""

    def propose(
        self, tokens: Sequence[int], most: int, least: float, step_seconds: float
    ) -> list[int] | None:
        """Propose up to ``most`` draft tokens after ``tokens``.

        Stops when the estimated probability that all draft tokens are accepted falls below ``least``. Returns None if
        the draft model has not read the text yet (it reads a part in each call), or cannot read it.
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
            if step_seconds:  # else no step of the larger model has been measured yet
                share = (self._model.seconds - before) / max(self.asked, 1) / step_seconds
                self._model.share += SLOW * (min(share, 2 * self._model.share) - self._model.share)
            return found
        except CacheFull:
            self.close()
            return None

    def close(self) -> None:
        """Release the pages to the draft model's prefix cache."""
        self._model.runner.cache.release(self._table, tokens=self._read)
        self._table, self._read, self._sure = BlockTable(), [], 0

    def _take(self, tokens: list[int]) -> NDArray[np.float32]:
        logits = self._model.logits(self._table, tokens)
        self._read += tokens
        return logits

    def _common(self, tokens: Sequence[int]) -> int:
        """Length of the common prefix of ``tokens`` and the read tokens, at most all tokens except the last.

        They differ where draft tokens were rejected.
        """
        most = min(len(self._read), len(tokens) - 1)
        common = min(self._sure, most)
        while common < most and self._read[common] == tokens[common]:
            common += 1
        return common

    def _go_back(self, tokens: Sequence[int]) -> None:
        """Roll back the read tokens that are not in the text. A new text starts from the prefix cache."""
        runner = self._model.runner
        if not self._read:
            self._table = runner.cache.find_prefix(tokens, len(tokens) - 1)
            self._read = list(tokens[: self._table.length])
            self._sure = len(self._read)
        length = runner.cache.truncate(self._table, self._common(tokens))
        del self._read[length:]


class DraftGain:
    """Decides whether to ask the draft model, from the acceptance in this text (at first: in other texts)."""

    def __init__(self, draft: DraftModel) -> None:
        self.proposed = self.accepted = 0
        self._draft, self._usual = draft, replace(draft.usual)
        self._idle, self._patience, self._tries = 0, PATIENCE, False

    def most(self, costs: Sequence[float], others: int) -> int:
        """Maximum number of draft tokens to ask for now.

        ``costs[k]`` is the time of a step with k draft tokens. ``others`` is the number of the step's rows of other
        texts.
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
        self._idle, self._patience = 0, 2 * self._patience  # trials become rarer
        self._tries = True
        return min(TRIED, len(costs) - 1)

    def least(self, costs: Sequence[float]) -> float:
        """Minimum probability of acceptance at which a draft token is worth its time."""
        row = (costs[-1] - costs[0]) / (len(costs) - 1)
        return min(self._draft.share + row / costs[0], 0.95)

    def tell(self, asked: int, proposed: int, accepted: int) -> None:
        """Report a call: tokens ``asked`` of the draft model, ``proposed`` draft tokens, ``accepted`` draft tokens."""
        self.proposed, self.accepted = self.proposed + proposed, self.accepted + accepted
        if self._tries and accepted == asked:
            self._usual = Usual()
        else:
            self._usual.tell(asked, accepted, SEEN)
        self._tries = False
        self._draft.usual.tell(asked, accepted, SLOW)
