"""DRY, don't repeat yourself: the longer a repetition would become, the less likely its next token (Weidmann 2024).

If the last n tokens have occurred before, and n >= ``dry_allowed_length``, the step lowers the logit of the token that
followed these tokens before. The penalty is ``dry_multiplier`` * ``dry_base`` ** (n - ``dry_allowed_length``). A
sequence breaker, a text such as a new line, ends a repetition and is never penalised. The default values and the search
for breakers are llama.cpp's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from pellucid.sample.candidates import Candidates
from pellucid.sample.checking import real, texts, whole
from pellucid.sample.step import RequestContext, SamplerStep, TokenHistory, TokenizerProtocol, last, option

MAX_BREAKERS, MAX_BREAKER_CHARACTERS, MAX_TAIL_TOKENS = 64, 40, 20
# Maximum number of lists of breakers that are cached for one vocabulary.
MAX_CACHED = 16
# Logarithm of the largest float32, which limits the penalty.
MAX_LOG_PENALTY = 88.7228391

Breakers = Mapping[int, Sequence[tuple[int, ...]]]
"""Token → the token sequences that complete a breaker after it; () if the token contains a whole breaker."""


@dataclass(frozen=True)
class Dry(SamplerStep):
    name, order, kind = "dry", 30, "change"

    dry_multiplier: float = option(
        0.0, real(0, 1000, "0 turns it off"), "How much repetitions are penalised (0.8 is usual); 0 is off."
    )
    dry_base: float = option(1.75, real(1, 100), "How the penalty grows with the length of a repetition.")
    dry_allowed_length: int = option(2, whole(0, 1 << 31), "Repetitions longer than this are penalised.")
    dry_penalty_last_n: int = option(
        -1,
        whole(-1, 1 << 31, "-1 is all"),
        "How many of the last tokens are searched for repetitions; -1 is all.",
    )
    dry_sequence_breakers: Sequence[str] = option(
        ("\n", ":", '"', "*"),
        texts(MAX_BREAKERS, MAX_BREAKER_CHARACTERS),
        "Texts that end a repetition, separated by commas.",
        lambda text: text.split(","),
    )
    breakers: Breakers = field(default_factory=dict, compare=False, repr=False)
    heads: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64), compare=False, repr=False)

    @property
    def idle(self) -> bool:
        return self.dry_multiplier == 0 or self.dry_penalty_last_n == 0

    def bind(self, context: RequestContext) -> SamplerStep:
        breakers = _breakers(context.tokenizer, tuple(self.dry_sequence_breakers))
        return replace(self, breakers=breakers, heads=np.array(list(breakers), np.int64))

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        ids = last(history.ids, self.dry_penalty_last_n)
        longest = self._since_breaker(ids)
        if longest < self.dry_allowed_length or len(ids) <= self.dry_allowed_length:
            return candidates
        steepest = int(MAX_LOG_PENALTY / math.log(self.dry_base)) if self.dry_base > 1.000001 else 0
        lengths = repetitions(ids, min(longest, self.dry_allowed_length + steepest))
        following = np.flatnonzero(lengths >= self.dry_allowed_length)
        tokens, group = np.unique(ids[following + 1], return_inverse=True)
        repeated = np.zeros(len(tokens), np.int64)
        np.maximum.at(repeated, group, lengths[following])
        harmful = np.array([() not in self.breakers.get(token, ()) for token in tokens.tolist()], np.bool_)
        tokens, repeated = tokens[harmful], repeated[harmful]
        growth = self.dry_base ** (repeated - self.dry_allowed_length).astype(np.float64)
        return candidates.plus(tokens, -self.dry_multiplier * growth)

    def _since_breaker(self, ids: NDArray[np.int64]) -> int:
        """The maximum length of a repetition: the number of tokens after the last breaker."""
        positions = np.flatnonzero(np.isin(ids, self.heads))
        for position in positions[::-1].tolist():
            after = ids[position + 1 : position + 1 + MAX_TAIL_TOKENS].tolist()
            fits = [
                len(tail) for tail in self.breakers[int(ids[position])] if tuple(after[: len(tail)]) == tail
            ]
            if fits:
                return int(len(ids) - 1 - position - max(fits))
        return len(ids)


def repetitions(ids: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """For each position except the last: how many tokens up to this position equal the last tokens of ``ids``.

    A length is at most ``limit``.
    """
    lengths = np.zeros(len(ids) - 1, np.int64)
    positions = np.arange(len(ids) - 1)
    for length in range(limit):
        positions = positions[positions >= length]
        positions = positions[ids[positions - length] == ids[len(ids) - 1 - length]]
        if not len(positions):
            break
        lengths[positions] = length + 1
    return lengths


_breakers_cache: WeakKeyDictionary[TokenizerProtocol, dict[tuple[str, ...], Breakers]] = WeakKeyDictionary()
"""The breakers of each vocabulary: the search takes a while and depends only on the vocabulary and the texts."""


def _breakers(tokenizer: TokenizerProtocol, breakers: tuple[str, ...]) -> Breakers:
    """The tokens that contain a breaker, and the tokens that begin a breaker with the tokens that complete it."""
    known = _breakers_cache.setdefault(tokenizer, {})
    if breakers not in known:
        if len(known) >= MAX_CACHED:
            known.clear()
        known[breakers] = _search_breakers(tokenizer, breakers)
    return known[breakers]


def _search_breakers(tokenizer: TokenizerProtocol, breakers: tuple[str, ...]) -> Breakers:
    tails: dict[int, list[tuple[int, ...]]] = {}
    for token in range(tokenizer.vocab_size):
        text = tokenizer.decode([token], skip_special=False)
        for breaker in breakers:
            if breaker in text:
                tails.setdefault(token, []).append(())
                continue
            for position in range(max(len(text) - len(breaker) + 1, 0), len(text)):
                if breaker.startswith(text[position:]):
                    rest = breaker[len(text) - position :]
                    tail = tuple(tokenizer.encode(rest, add_special=False))[:MAX_TAIL_TOKENS]
                    tails.setdefault(token, []).append(tail)
    return tails
