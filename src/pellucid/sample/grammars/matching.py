"""The state of a text in a grammar (``grammar.py``), and the tokens that may come next.

The mask has one bit for each token of the vocabulary, which is set if the token may come next. After each token a
thread (``grammar.py``) computes the next mask while the model runs its next step. If the mask takes long, only this
sequence waits.
"""

from __future__ import annotations

import functools
import threading
import time
import weakref
from typing import TYPE_CHECKING

import numpy as np

from pellucid.errors import InvalidRequest
from pellucid.sample.candidates import Candidates
from pellucid.sample.grammars.grammar import LIMITS, LONG_COMPILATION, Grammar, consume, pool, trim
from pellucid.sample.grammars.problems import refusal
from pellucid.sample.step import RequestContext, TokenizerProtocol

if TYPE_CHECKING:
    from concurrent.futures import Future

    from llguidance import LLMatcher, LLTokenizer

MAX_TREES = 4  # cached for one vocabulary
MAX_FORCED_BYTES, UNCERTAIN_TOKENS = 1 << 13, 16
"""A long forced text is tokenized in parts of ``MAX_FORCED_BYTES``. The last ``UNCERTAIN_TOKENS`` tokens of a part are
dropped, because the tokens at its end depend on the text after it."""


class _Vocabulary:
    """A vocabulary in the form that llguidance reads. A vocabulary without an end token gets an end token."""

    def __init__(self, tokenizer: TokenizerProtocol, ends: frozenset[int]) -> None:
        size = tokenizer.vocab_size
        self.bos_token_id = None
        self.eos_token_id = min(ends, default=size)
        self.special_token_ids = [token for token in range(size) if tokenizer.is_special(token)]
        self.tokens = [tokenizer.token_bytes(token) for token in range(size)]
        if not ends:
            self.special_token_ids.append(size)
            self.tokens.append(b"<end>")
        self._tokenizer, self._size = weakref.ref(tokenizer), size

    def __call__(self, text: bytes | str) -> list[int]:
        """The tokens of a text. For a long text, only the tokens of its beginning."""
        data = text if isinstance(text, bytes) else text.encode()
        if len(data) > MAX_FORCED_BYTES:  # llguidance holds the GIL during this call
            return self(data[: _whole_characters(data, MAX_FORCED_BYTES)])[:-UNCERTAIN_TOKENS]
        tokenizer = self._tokenizer()
        ids = [] if tokenizer is None else tokenizer.encode(data.decode("utf-8", "replace"), add_special=False)
        # Some tokenizers put a space before a text, and the bytes may not be valid UTF-8.
        return ids if b"".join(self.tokens[token] for token in ids) == data else self._longest_matches(data)

    def _longest_matches(self, data: bytes) -> list[int]:
        """Tokenize by the longest match at each position, up to the first position without a match."""
        tokens, at = [], 0
        while at < len(data):
            for stop in range(min(at + self._longest, len(data)), at, -1):
                if (token := self._by_bytes.get(data[at:stop])) is not None:
                    tokens.append(token)
                    at = stop
                    break
            else:
                return tokens
        return tokens

    @functools.cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        """The lowest token id of each byte string."""
        special = set(self.special_token_ids)
        return {self.tokens[token]: token for token in range(self._size - 1, -1, -1) if token not in special}

    @functools.cached_property
    def _longest(self) -> int:
        return max(map(len, self._by_bytes), default=0)


def _whole_characters(data: bytes, limit: int) -> int:
    """The last position, at most ``limit``, at which a UTF-8 character begins."""
    return next((at for at in range(limit, max(limit - 4, 0), -1) if data[at] & 0xC0 != 0x80), limit)


_trees: weakref.WeakKeyDictionary[TokenizerProtocol, dict[frozenset[int], LLTokenizer]] = weakref.WeakKeyDictionary()
"""llguidance's trees of a vocabulary, by the tokens that end a text. Building a tree of 262,144 tokens takes 1 s."""


def tree_of(tokenizer: TokenizerProtocol, ends: frozenset[int]) -> LLTokenizer:
    """llguidance's tree of a vocabulary. ``ends`` are the tokens that end a text."""
    from llguidance import LLTokenizer, TokenizerWrapper

    known = _trees.setdefault(tokenizer, {})
    if ends not in known:
        if len(known) >= MAX_TREES:
            known.pop(next(iter(known)))
        pieces = _Vocabulary(tokenizer, ends)
        wrapped = TokenizerWrapper(pieces)
        known[ends] = LLTokenizer(wrapped, n_vocab=len(pieces.tokens), eos_token=sorted(ends) or [tokenizer.vocab_size])
    return known[ends]


MAX_MASK_WAIT = 0.001
"""Maximum seconds that a model's step waits for a mask. Most masks take a tenth of this time. If a mask takes longer,
the step runs without the sequence of this mask."""
# A grammar counts as slow if one of its masks takes more than this number of seconds.
SLOW_MASK = 0.005
MAX_SECONDS, MAX_SECONDS_PER_TOKEN = 10.0, 0.02
"""Limits in seconds of CPU time for the masks of a request: in total, and per token. The larger limit applies."""
# Maximum number of forced tokens by which the parser may be ahead of a text.
MAX_FORCED_TOKENS = 256


class _Cost:
    """The cost of the masks of a text and of its forks.

    A ``large`` grammar may take much memory. With ``in_worker``, only threads of ``grammar.py`` use the matchers, and
    each thread holds ``lock`` while it uses a matcher. Forks share a lexer in llguidance. Without the lock, llguidance
    would hold the GIL while it waits for the lexer.
    """

    def __init__(self, in_worker: bool) -> None:
        self.large = self.in_worker = in_worker
        self.slow = False
        self.seconds, self.masks = 0.0, 0
        self.lock = threading.Lock()

    def add(self, seconds: float) -> None:
        """Count the CPU time of a mask."""
        self.seconds, self.masks = self.seconds + seconds, self.masks + 1
        if seconds > SLOW_MASK:
            self.slow = self.large = self.in_worker = True

    def check(self, kind: str) -> None:
        """Raise InvalidRequest if the masks have taken more CPU time than the limit."""
        limit = max(MAX_SECONDS, self.masks * MAX_SECONDS_PER_TOKEN)
        if self.seconds > limit:
            raise InvalidRequest(
                f"{kind} took {self.seconds:.1f} s of CPU time for {self.masks:,} tokens; the limit is "
                f"{limit:.1f} s: make it less ambiguous, so that a text fits it in one way only"
            )


class Matching:
    """The state of a text in a grammar, and the tokens that may come next.

    If the grammar allows only one continuation, the parser is ahead of the text. ``forced`` are the tokens that must
    come next. If all masks so far were quick, ``accept`` lets the parser consume the token in the calling thread. This
    is quick too, because the computation of the mask has already parsed the token's bytes. If a mask was slow, a worker
    thread consumes the token. Raises InvalidRequest: the grammar cannot be matched, or takes too long.
    """

    def __init__(self, grammar: Grammar, context: RequestContext) -> None:
        tokenizer, self._ends = context.tokenizer, context.eos_ids
        self._size, self._kind, self._idle = tokenizer.vocab_size, grammar.kind, context.spare_core
        self._cost, self._problem = _Cost(grammar.long_runs), ""
        self._matcher: LLMatcher | None = None
        self._state: tuple[bool, list[int]] = (False, [])  # parser has stopped; forced tokens
        # ``complete`` is known after the job ``_advanced``. The next token can be chosen after the job ``_prepared``.
        self._advanced = self._prepared = _future(done=True)
        tree = tree_of(tokenizer, self._ends)
        try:
            pool("large").submit(self._compile, tree, grammar.source).result()
            if self._cost.in_worker:
                self._advance_in_worker(None)
                self._prepared.result()
                self._check()
            else:
                self._advance()
        except BaseException:
            self.close()
            raise

    def _compile(self, tree: LLTokenizer, source: str) -> None:
        from llguidance import LLMatcher, LLParserLimits

        limits, start = LLParserLimits(**LIMITS), time.thread_time()  # type: ignore[arg-type]
        self._matcher = LLMatcher(tree, source, log_level=0, limits=limits)
        self._spare = LLMatcher(tree, "", log_level=0)
        if time.thread_time() - start > LONG_COMPILATION:
            self._cost.large = True

    @property
    def forced(self) -> list[int]:
        """The tokens that must come next, as far as they are known."""
        return self._state[1]

    @property
    def complete(self) -> bool:
        """True if no token can follow. Raises InvalidRequest: the last token made the grammar too complex."""
        self._advanced.result()
        stopped, forced = self._state
        if stopped:
            self._check()
        return stopped and not forced

    @property
    def advancing(self) -> Future[None] | None:
        """The job that must end before ``complete`` is known. None if ``complete`` is known, or will be known soon."""
        return self._unended(self._advanced)

    @property
    def preparing(self) -> Future[None] | None:
        """The job that must end before the next token can be chosen. None if no job runs, or if the job ends soon."""
        return None if self.forced else self._unended(self._prepared)

    def _unended(self, job: Future[None]) -> Future[None] | None:
        """Return ``job``, or None if it ends within ``MAX_MASK_WAIT``. Does not wait if the grammar is slow."""
        if job.done():
            return None
        if not self._cost.slow:
            from concurrent.futures import TimeoutError as TimedOut

            try:
                job.exception(MAX_MASK_WAIT)
            except TimedOut:
                return job
            return None
        return job

    def restrict(self, candidates: Candidates) -> Candidates:
        """The candidates that the grammar allows as the next token.

        Raises InvalidRequest: the grammar has become too complex to match, or has taken too long.
        """
        if not self.forced:
            self._prepared.result()
            self._check()
        if forced := self.forced:
            return candidates.keep(candidates.positions(np.array(forced[:1])))
        return candidates.allow(self._mask)

    def accept(self, token: int) -> None:
        """Advance by a token."""
        if not self.forced:
            self._prepared.result()
        if forced := self.forced:
            del forced[0]
        elif token in self._ends:
            return
        elif self._cost.in_worker:
            self._advance_in_worker(token)
        elif self._matcher:
            self._matcher.consume_token(token)
            self._advance()

    def fork(self) -> Matching:
        """A copy of the state, for a text that continues differently."""
        self._prepared.result()
        self._cost.in_worker = True
        fork = object.__new__(Matching)
        fork.__dict__.update(self.__dict__)
        stopped, forced = self._state
        fork._state = stopped, list(forced)
        if self._matcher:
            fork._matcher = self._matcher.deep_copy()
        return fork

    def close(self) -> None:
        """Free the parser's state after the end of the text."""
        self._matcher = None
        self._prepared.cancel()
        if self._cost.large:
            pool("slow").submit(trim, self._prepared)

    def _check(self) -> None:
        """Raise InvalidRequest if the parser has reported a problem, or the masks have taken too long."""
        if self._problem:
            raise refusal(self._kind, "", self._problem)
        self._cost.check(self._kind)

    def _advance(self) -> None:
        """Consume the forced tokens, and start the computation of the mask after these tokens."""
        matcher = self._matcher
        assert matcher is not None, "it is closed"
        self._set_state(matcher, self._take_forced(matcher))
        self._check()
        if not self._state[0]:
            self._prepared = pool("mask").submit(self._compute_mask)
            # Without a spare core, a mask's thread would slow down all threads of the model.
            if not self._idle:
                self._unended(self._prepared)

    @staticmethod
    def _take_forced(matcher: LLMatcher) -> list[int]:
        if matcher.is_stopped():
            return []
        forced = matcher.compute_ff_tokens()[:MAX_FORCED_TOKENS]
        return forced[: matcher.try_consume_tokens(forced)]

    def _set_state(self, matcher: LLMatcher, forced: list[int]) -> None:
        """Store the state after a token, with a new mask. The mask of a stopped parser allows only end tokens."""
        if matcher.is_error():
            self._problem = matcher.get_error()
        stopped = matcher.is_stopped()
        # One bit for each token of the tree. The array is new, because a fork may still read the previous array.
        self._mask = np.zeros(-(-(self._size + (not self._ends)) // 32), np.uint32)
        if stopped:
            for end in self._ends:
                self._mask[end >> 5] |= np.uint32(1 << (end & 31))
        self._state = stopped, forced

    def _compute_mask(self) -> None:
        # llguidance gets only the address of the array, so the variable ``mask`` keeps the array alive.
        matcher, mask = self._matcher, self._mask
        if matcher is None:
            return
        start = time.thread_time()
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self._cost.add(time.thread_time() - start)
        if matcher.is_error():
            self._problem = matcher.get_error()

    def _advance_in_worker(self, token: int | None) -> None:
        """Let a worker thread consume a token, and compute the mask after the token."""
        self._advanced = _future()
        threads = pool("slow" if self._cost.slow else "large" if token is None else "mask")
        self._prepared = threads.submit(self._worker_step, token, self._advanced)
        self._unended(self._prepared)

    def _worker_step(self, token: int | None, advanced: Future[None]) -> None:
        matcher = self._matcher
        try:
            if matcher is None:
                return
            with self._cost.lock:
                if token is not None:
                    consume(matcher, token, self._spare)
                self._set_state(matcher, [])
                advanced.set_result(None)
                if self._state[0]:
                    return
                # Compute the mask first, because the computation finds any number of forced tokens without the GIL.
                self._compute_mask()
                one_way = not self._problem and np.unpackbits(self._mask.view(np.uint8)).sum() == 1
                if one_way and (forced := self._take_forced(matcher)):
                    self._set_state(matcher, forced)
                    if not self._state[0]:
                        self._compute_mask()
        finally:
            if not advanced.done():
                advanced.set_result(None)


def _future(*, done: bool = False) -> Future[None]:
    from concurrent.futures import Future

    future: Future[None] = Future()
    if done:
        future.set_result(None)
    return future
