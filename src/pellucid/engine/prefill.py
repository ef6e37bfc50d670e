"""Prefill: the tokens of a prompt are read into the cache, in chunks."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pellucid.engine.model_runner import ModelRunner
from pellucid.engine.scoring import ScoringTask, token_logprobs
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.pipeline import ChunkOutput
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.sample.logprobs import Logprobs, TokenLogprobs, joined


class Prefill:
    """A prompt that is read into the cache: the prefix cache may hold its beginning, the rest is read in chunks.

    ``alternatives`` is how many to report with the log-probability of each of its tokens (None: no log-probabilities).
    These need the logits of all rows, so the prefix cache is not used for them. Only the first ``vocabulary`` logits of
    a row stand for tokens.

    Attributes: ``queue`` is the seconds that it waited for the running step, ``seconds`` the duration of the steps that
    read it, ``cached_tokens`` how many of its tokens were cached already.
    """

    def __init__(
        self,
        runner: ModelRunner,
        ids: list[int],
        alternatives: int | None,
        vocabulary: int,
    ) -> None:
        self.ids, self.cached_tokens = ids, 0
        self.queue = self.seconds = 0.0
        self._runner, self._vocabulary = runner, vocabulary
        self._alternatives, self._logprobs = alternatives, list[TokenLogprobs]()
        self._table: BlockTable | None = None
        self._scoring_task: ScoringTask | None = None
        self._scoring = False

    @property
    def logprobs(self) -> Logprobs | None:
        """The log-probabilities of its tokens but the first, once they are known; None if they were not requested."""
        return (
            None
            if self._scoring_task is None or self._alternatives is None
            else joined(self._logprobs, self._alternatives)
        )

    @property
    def table(self) -> BlockTable:
        """Its block table, which begins with what the prefix cache has at first access.

        At least one token is left out, because its step computes the logits of the token that follows.
        """
        if self._table is None:
            start = time.perf_counter()
            most = 0 if self._alternatives is not None else len(self.ids) - 1
            self._table = self._runner.find_prefix(self.ids, most)
            self.queue = time.perf_counter() - start
            if self._alternatives is not None:
                self._scoring_task = ScoringTask(self._table, self.ids, 1, self._runner.limits)
            self.cached_tokens = self._table.length
        return self._table

    def pending(self) -> list[Chunk]:
        """The next chunk of its tokens; the last chunk asks for the logits of the token that follows."""
        table = self.table
        self._scoring = self._scoring_task is not None and not self._scoring_task.done
        if self._scoring_task is not None and self._scoring:
            return self._scoring_task.pending()
        stop = min(table.length + self._runner.limits.tokens, len(self.ids))
        border = stop // PAGE * PAGE  # where a window or a state can be shared
        if table.length < border and stop < len(self.ids):
            stop = border
        return [Chunk(table, self.ids[table.length : stop], outputs=int(stop == len(self.ids)))]

    def take(self, outputs: list[ChunkOutput], seconds: float) -> ChunkOutput | None:
        """The logits (1, V) of the token that follows the prompt; None until the whole prompt has been read."""
        self.seconds += seconds
        if self._scoring_task is not None and self._scoring:
            assert self._alternatives is not None
            for place, logits in self._scoring_task.take(outputs):
                scored = token_logprobs(logits, place, self.ids[place], self._alternatives, self._vocabulary)
                self._logprobs.append(scored)
            return None
        self._runner.keep_prefix(self.table, self.ids)
        return outputs[0] if self.table.length == len(self.ids) else None

    def close(self, tokens: Sequence[int]) -> None:
        """Leave the block table to the prefix cache; ``tokens`` begin with those that it holds."""
        if self._table is not None:
            self._runner.release(self._table, tokens=tokens)
