"""The state of a text in a grammar (``grammar.py``), and the tokens that may come next.

After each token the mask of the tokens that may follow is computed. If the model leaves a core idle, a separate thread
computes it during the model's next step.
"""

from __future__ import annotations

import functools
import os
import weakref
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pellucid.sample.candidates import Candidates
from pellucid.sample.grammars.grammar import LIMITS, Grammar
from pellucid.sample.grammars.schema import refused
from pellucid.sample.step import RequestContext, TokenizerProtocol

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from llguidance import LLMatcher, LLTokenizer

PLAINLY = {
    "NoExtensionBias": "there is no text that it allows",
    "NoExtension": "there is no text that it allows",
}
MAX_TREES = 4  # cached for one vocabulary


class _Vocabulary:
    """A vocabulary in the form that llguidance reads, with an additional end token if it has none."""

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
        data = text if isinstance(text, bytes) else text.encode()
        tokenizer = self._tokenizer()
        ids = (
            [] if tokenizer is None else tokenizer.encode(data.decode("utf-8", "replace"), add_special=False)
        )
        # Some tokenizers put a space before a text, and the bytes may not be valid UTF-8.
        return ids if b"".join(self.tokens[token] for token in ids) == data else self._longest_matches(data)

    def _longest_matches(self, data: bytes) -> list[int]:
        """Tokenize by the longest match at each position, up to the first position without a match."""
        found, at = [], 0
        while at < len(data):
            for stop in range(min(at + self._longest, len(data)), at, -1):
                if (token := self._by_bytes.get(data[at:stop])) is not None:
                    found.append(token)
                    at = stop
                    break
            else:
                return found
        return found

    @functools.cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        """The lowest token id of each byte string."""
        special = set(self.special_token_ids)
        return {self.tokens[token]: token for token in range(self._size - 1, -1, -1) if token not in special}

    @functools.cached_property
    def _longest(self) -> int:
        return max(map(len, self._by_bytes), default=0)


_trees: weakref.WeakKeyDictionary[TokenizerProtocol, dict[frozenset[int], LLTokenizer]] = (
    weakref.WeakKeyDictionary()
)
"""llguidance's trees of a vocabulary, by the tokens that end a text. One of 262,144 tokens takes a second to build."""


def _tree(tokenizer: TokenizerProtocol, ends: frozenset[int]) -> LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper

    known = _trees.setdefault(tokenizer, {})
    if ends not in known:
        if len(known) >= MAX_TREES:
            known.pop(next(iter(known)))
        pieces = _Vocabulary(tokenizer, ends)
        wrapped = TokenizerWrapper(pieces)
        known[ends] = LLTokenizer(
            wrapped, n_vocab=len(pieces.tokens), eos_token=sorted(ends) or [tokenizer.vocab_size]
        )
    return known[ends]


@functools.cache
def _mask_pool() -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor  # slow to import, and only grammars need it

    return ThreadPoolExecutor(1, thread_name_prefix="pellucid-grammar")


if hasattr(os, "register_at_fork"):  # a forked child would inherit the pool without its thread
    os.register_at_fork(after_in_child=_mask_pool.cache_clear)


class Matching:
    """The state of a text in a grammar, and the tokens that may come next.

    Where the grammar allows only one continuation, the parser is ahead of the text: ``forced`` are the tokens that must
    come. While a mask is being computed, nothing else may use the matcher.
    """

    def __init__(self, grammar: Grammar, context: RequestContext) -> None:
        from llguidance import LLMatcher, LLParserLimits

        tokenizer, self._ends = context.tokenizer, context.eos_ids
        self._size, self._kind, self._idle = tokenizer.vocab_size, grammar.kind, context.spare_core
        limits = LLParserLimits(**LIMITS)  # type: ignore[arg-type]
        self._matcher = LLMatcher(_tree(tokenizer, self._ends), grammar.source, log_level=0, limits=limits)
        self.forced: list[int] = []
        self._stopped, self._pending = False, _done()
        self._advance()

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""
        return self._stopped and not self.forced

    def among(self, candidates: Candidates) -> Candidates:
        """The candidates that may come next.

        Raises:
            InvalidRequest: the grammar has become too complex to match.
        """
        if self.forced:
            return candidates.keep(candidates.places(np.array(self.forced[:1])))
        self._pending.result()
        self._check()
        return candidates.allow(self._mask)

    def accept(self, token: int) -> None:
        """Advance by a token."""
        if self.forced:
            del self.forced[0]
        elif token not in self._ends:
            self._pending.result()
            self._matcher.consume_token(token)
            self._advance()

    def fork(self) -> Matching:
        """A copy that can diverge."""
        self._pending.result()
        made = object.__new__(Matching)
        made.__dict__.update(self.__dict__)
        made._matcher, made.forced = self._matcher.deep_copy(), list(self.forced)
        return made

    def _advance(self) -> None:
        """Find the tokens that must come, and start to compute the mask of those that may come after them."""
        self._check()
        if not self._matcher.is_stopped():
            forced = self._matcher.compute_ff_tokens()
            self.forced = forced[: self._matcher.try_consume_tokens(forced)]
            self._check()
        self._stopped = bool(self._matcher.is_stopped())
        # One bit per token of _Vocabulary. A new array, because a fork may still read the previous one.
        self._mask = np.zeros(-(-(self._size + (not self._ends)) // 32), np.uint32)
        if self._stopped:
            for end in self._ends:
                self._mask[end >> 5] |= np.uint32(1 << (end & 31))
        elif self._idle:
            self._pending = _mask_pool().submit(_fill, self._matcher, self._mask)
        else:  # a thread beside the model would cost more: each would wait for the other
            _fill(self._matcher, self._mask)

    def _check(self) -> None:
        if self._matcher.is_error():
            problem = self._matcher.get_error().partition("<state>")[
                0
            ]  # the rest is the parser's internal state
            raise refused(self._kind, PLAINLY.get(problem.strip(), problem))


def _done() -> Future[None]:
    """A future that is already done."""
    from concurrent.futures import Future

    done: Future[None] = Future()
    done.set_result(None)
    return done


def _fill(matcher: LLMatcher, mask: NDArray[np.uint32]) -> None:
    """Compute a mask. llguidance gets only its address, so this call must keep the array alive."""
    matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
