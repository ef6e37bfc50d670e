"""Steps that change logits by what the text has: biases, repetition penalties, DRY; and repeated n-grams."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, brief
from pellucid.sample.candidates import Candidates
from pellucid.sample.checking import real, texts, token_or_text, whole
from pellucid.sample.step import (
    RequestContext,
    SamplerStep,
    TokenHistory,
    TokenizerProtocol,
    last,
    option,
    single_token,
)

MAX_ENTRIES = 16_384
_finite = real(-1000, 1000, "minus infinity forbids a token")


def _biases(name: str, value: Any) -> tuple[tuple[int | str, float], ...]:
    """Pairs of token and number, from a mapping, or from a value that this function has checked before."""
    pairs = tuple(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise InvalidRequest(f"{name}={brief(value)}: must map token ids or texts to numbers, as {{1234: -5.0}}")
    if len(pairs) > MAX_ENTRIES:
        raise InvalidRequest(f"{name} has {len(pairs):,} entries; the limit is {MAX_ENTRIES:,}: bias fewer tokens")
    return tuple((token_or_text(name, token), _amount(f"{name} of {brief(token)}", amount)) for token, amount in pairs)


def _amount(name: str, value: Any) -> float:
    infinite = isinstance(value, (float, np.floating)) and value == -math.inf
    return -math.inf if infinite else float(_finite(name, value))


def _parse(text: str) -> Any:
    """Parse TOKEN=NUMBER,... from a command line. A malformed text is returned unchanged: the check rejects it."""
    pairs = (part.rpartition("=") for part in text.split(","))
    if "=" not in text:
        return text
    try:
        return {int(token) if token.strip().isdigit() else token: float(amount) for token, _, amount in pairs}
    except ValueError:
        return text


@dataclass(frozen=True)
class LogitBias(SamplerStep):
    """Logit bias: adds numbers to the logits of some tokens (OpenAI's API). Minus infinity forbids a token.

    A token is given as its id, or as a text that is exactly one token.
    """

    name, order, kind, off = "logit_bias", 40, "change", ()

    logit_bias: tuple[tuple[int | str, float], ...] = option(
        (), _biases, "Numbers added to logits: TOKEN=NUMBER,... where a token is its id or its text.", _parse
    )
    ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64), compare=False, repr=False)
    amounts: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0), compare=False, repr=False)

    def bind(self, context: RequestContext) -> SamplerStep:
        ids = tuple(single_token(context, "logit_bias", token) for token, _ in self.logit_bias)
        if len(set(ids)) < len(ids):
            twice = next(token for at, token in enumerate(ids) if token in ids[:at])
            raise InvalidRequest(f"logit_bias names token {twice} twice, by its id and its text: remove one of the two")
        amounts = np.array([amount for _, amount in self.logit_bias])
        return replace(self, ids=np.array(ids, np.int64), amounts=amounts)

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        return candidates.plus(self.ids, self.amounts)


@dataclass(frozen=True)
class Penalties(SamplerStep):
    """Penalties for tokens that have occurred: repetition (Keskar et al. 2019), frequency and presence (OpenAI's API).

        repetition   for tokens of the prompt or the answer: divides a positive logit, multiplies a negative one
        frequency    for tokens of the answer: subtracted from the logit once per occurrence
        presence     for tokens of the answer: subtracted from the logit once

    Only the last ``repeat_last_n`` tokens count; -1 is all, as in transformers and vLLM. llama.cpp uses 64, and counts
    the prompt for frequency and presence as well.
    """

    name, order, kind = "penalties", 10, "change"

    repetition_penalty: float = option(
        1.0, real(0.001, 100, "1 turns it off"), "Above 1, tokens that occurred before are less likely; 1 is off."
    )
    frequency_penalty: float = option(
        0.0, real(-100, 100, "0 turns it off"), "Subtracted from a token's logit for each occurrence in the answer."
    )
    presence_penalty: float = option(
        0.0, real(-100, 100, "0 turns it off"), "Subtracted once from the logit of each token in the answer."
    )
    repeat_last_n: int = option(
        -1, whole(-1, 1 << 31, "-1 is all"), "How many of the last tokens count for the penalties; -1 is all."
    )

    @property
    def idle(self) -> bool:
        values = self.repetition_penalty, self.frequency_penalty, self.presence_penalty
        return values == (1, 0, 0) or self.repeat_last_n == 0

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        if self.repetition_penalty != 1:
            positions = candidates.positions(history.counts(0, self.repeat_last_n).ids)
            logits, p = candidates.logits(positions), self.repetition_penalty
            candidates = candidates.with_logits(positions, np.where(logits > 0, logits / p, logits * p))
        if history.index and (self.frequency_penalty or self.presence_penalty):
            answer = history.counts(history.prompt_length, self.repeat_last_n)
            off = answer.counts * self.frequency_penalty + self.presence_penalty
            candidates = candidates.plus(answer.ids, -off)
        return candidates


MAX_BREAKERS, MAX_BREAKER_CHARACTERS, MAX_TAIL_TOKENS = 64, 40, 20
# Maximum number of lists of breakers that are cached for one vocabulary.
MAX_CACHED = 16
# Logarithm of the largest float32, which limits the penalty.
MAX_LOG_PENALTY = 88.7228391

Breakers = Mapping[int, Sequence[tuple[int, ...]]]
"""Token → the token sequences that complete a breaker after it; () if the token contains a whole breaker."""


@dataclass(frozen=True)
class Dry(SamplerStep):
    """DRY, don't repeat yourself: the longer a repetition would become, the less likely its next token (Weidmann 2024).

    If the last n tokens have occurred before, and n >= ``dry_allowed_length``, the step lowers the logit of the token
    that followed these tokens before. The penalty is ``dry_multiplier`` * ``dry_base`` ** (n - ``dry_allowed_length``).
    A sequence breaker, a text such as a new line, ends a repetition and is never penalised. The default values and the
    search for breakers are llama.cpp's.
    """

    name, order, kind = "dry", 30, "change"

    dry_multiplier: float = option(
        0.0, real(0, 1000, "0 turns it off"), "How much repetitions are penalised (0.8 is usual); 0 is off."
    )
    dry_base: float = option(1.75, real(1, 100), "How the penalty grows with the length of a repetition.")
    dry_allowed_length: int = option(2, whole(0, 1 << 31), "Repetitions longer than this are penalised.")
    dry_penalty_last_n: int = option(
        -1, whole(-1, 1 << 31, "-1 is all"), "How many of the last tokens are searched for repetitions; -1 is all."
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
            fits = [len(tail) for tail in self.breakers[int(ids[position])] if tuple(after[: len(tail)]) == tail]
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


@dataclass(frozen=True)
class NoRepeatNgram(SamplerStep):
    """No repeated n-grams: forbids tokens that would complete an n-gram that has occurred (Paulus et al. 2017)."""

    name, order, kind, off = "no_repeat_ngram", 20, "forbid", 0

    no_repeat_ngram_size: int = option(
        0, whole(0, 1 << 31, "0 turns it off"), "No sequence of N tokens occurs twice; 0 is off."
    )

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        ids, n = history.ids, self.no_repeat_ngram_size
        if len(ids) < n:
            return candidates
        before = len(ids) - n + 1  # positions at which an n-gram begins
        same = np.ones(before, np.bool_)
        for offset in range(n - 1):
            same &= ids[offset : offset + before] == ids[before + offset]
            if not same.any():
                return candidates
        return candidates.forbid(np.unique(ids[n - 1 :][same]))
