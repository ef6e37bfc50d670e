"""A prompt on its way into the cache, in chunks."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pellucid.engine.model_runner import ModelRunner
from pellucid.engine.prefix_cache import PrefixCache, PrefixLease
from pellucid.engine.scoring import ScoredSequence, token_logprobs
from pellucid.pipeline import Rows
from pellucid.runtime.batch import Chunk
from pellucid.sample.logprobs import Logprobs, TokenLogprobs, joined


class Prompt:
    """A prompt on its way into the cache: what of it is cached already, and the rest in chunks.

    ``logprobs`` is how many alternatives are wanted beside the log-probability of each of its tokens (None: no
    log-probabilities); they need the logits of all rows, so nothing is taken from the prefix cache then. The first
    ``vocabulary`` rows of logits are of tokens.

    Attributes: ``start`` when its first step was asked for, ``queue`` the seconds that it waited for its place in the
    cache, ``seconds`` those of the steps that read it, ``cached_tokens`` how many of its tokens were cached already.
    """

    def __init__(
        self,
        runner: ModelRunner,
        prefixes: PrefixCache,
        ids: list[int],
        logprobs: int | None,
        vocabulary: int,
    ) -> None:
        self.ids, self.cached_tokens = ids, 0
        self.start = self.queue = self.seconds = 0.0
        self._runner, self._prefixes, self._vocabulary = runner, prefixes, vocabulary
        self._wanted, self._rows = logprobs, list[TokenLogprobs]()
        self._lease: PrefixLease | None = None
        self._scored: ScoredSequence | None = None
        self._scoring = False

    @property
    def logprobs(self) -> Logprobs | None:
        """Those of its tokens but the first, if they were wanted and it has been read."""
        return None if self._scored is None or self._wanted is None else joined(self._rows, self._wanted)

    @property
    def lease(self) -> PrefixLease:
        """Its place in the cache, acquired when it is first asked for."""
        if self._lease is None:
            self.start = time.perf_counter()
            self._lease = self._prefixes.acquire(self.ids)
            self.queue = time.perf_counter() - self.start
            if self._wanted is not None:
                self._runner.truncate(self._lease.table, 0)
                self._scored = ScoredSequence(self._lease.table, self.ids, 1, self._runner.limits)
            self.cached_tokens = self._lease.table.length
        return self._lease

    def pending(self) -> list[Chunk]:
        """The next of its tokens; the last chunk asks for the logits of the token that follows."""
        table = self.lease.table
        self._scoring = self._scored is not None and not self._scored.done
        if self._scored is not None and self._scoring:
            return self._scored.pending()
        stop = min(table.length + self._runner.limits.tokens, len(self.ids))
        return [Chunk(table, self.ids[table.length : stop], outputs=int(stop == len(self.ids)))]

    def take(self, rows: list[Rows], seconds: float) -> Rows | None:
        """The logits (1, V) of the token that follows; None while the prompt is not read to its end."""
        if self._scored is not None and self._scoring:
            assert self._wanted is not None
            for place, logits in self._scored.take(rows):
                scored = token_logprobs(logits, place, self.ids[place], self._wanted, self._vocabulary)
                self._rows.append(scored)
            return None
        self.seconds += seconds
        return rows[0] if self.lease.table.length == len(self.ids) else None

    def close(self, tokens: Sequence[int]) -> None:
        """Give the lease back; ``tokens`` begin with those that its table holds."""
        if self._lease is not None:
            self._prefixes.release(self._lease, tokens)
