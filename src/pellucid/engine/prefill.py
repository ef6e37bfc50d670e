"""Prefill: the tokens of a prompt are read into the cache, in chunks."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pellucid.engine.model_runner import ModelRunner
from pellucid.engine.prefix_cache import PrefixCache, PrefixLease
from pellucid.engine.scoring import ScoringTask, token_logprobs
from pellucid.pipeline import ChunkOutput
from pellucid.runtime.batch import Chunk
from pellucid.sample.logprobs import Logprobs, TokenLogprobs, joined


class Prefill:
    """A prompt that is read into the cache: the prefix cache may hold its beginning, the rest is read in chunks.

    ``alternatives`` is how many to report with the log-probability of each of its tokens (None: no log-probabilities).
    These need the logits of all rows, so the prefix cache is not used for them. Only the first ``vocabulary`` logits of
    a row stand for tokens.

    Attributes: ``queue`` is the seconds that it waited for its lease, ``seconds`` the duration of the steps that read
    it, ``cached_tokens`` how many of its tokens were cached already.
    """

    def __init__(
        self,
        runner: ModelRunner,
        prefixes: PrefixCache,
        ids: list[int],
        alternatives: int | None,
        vocabulary: int,
    ) -> None:
        self.ids, self.cached_tokens = ids, 0
        self.queue = self.seconds = 0.0
        self._runner, self._prefixes, self._vocabulary = runner, prefixes, vocabulary
        self._alternatives, self._logprobs = alternatives, list[TokenLogprobs]()
        self._lease: PrefixLease | None = None
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
    def lease(self) -> PrefixLease:
        """Its lease of the prefix cache, acquired on first access."""
        if self._lease is None:
            start = time.perf_counter()
            self._lease = self._prefixes.acquire(self.ids)
            self.queue = time.perf_counter() - start
            if self._alternatives is not None:
                self._runner.truncate(self._lease.table, 0)
                self._scoring_task = ScoringTask(self._lease.table, self.ids, 1, self._runner.limits)
            self.cached_tokens = self._lease.table.length
        return self._lease

    def pending(self) -> list[Chunk]:
        """The next chunk of its tokens; the last chunk asks for the logits of the token that follows."""
        table = self.lease.table
        self._scoring = self._scoring_task is not None and not self._scoring_task.done
        if self._scoring_task is not None and self._scoring:
            return self._scoring_task.pending()
        stop = min(table.length + self._runner.limits.tokens, len(self.ids))
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
        return outputs[0] if self.lease.table.length == len(self.ids) else None

    def close(self, tokens: Sequence[int]) -> None:
        """Give the lease back; ``tokens`` begin with those that its block table holds."""
        if self._lease is not None:
            self._prefixes.release(self._lease, tokens)
