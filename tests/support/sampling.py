"""References of the sampler steps, as their papers define them: plain NumPy, float64, over the whole vocabulary.

A reference takes logits (V,) float64, the step's options and the token history, and returns the logits after the step.
Tokens that are not candidates have a logit of minus infinity. No code is shared with ``pellucid.sample``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
INF = math.inf
LIMIT = 7
"""The maximum number of generated tokens."""


class Words:
    """A fake tokenizer: each id is a character, and id 2 ends a text."""

    def __init__(self, size: int = 600) -> None:
        self.vocab_size = size
        self.eos_ids = frozenset({2})

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return [ord(c) % self.vocab_size for c in text]

    def decode(self, ids: Any, *, skip_special: bool = True) -> str:
        return "".join(map(chr, ids))

    def token_bytes(self, token_id: int) -> bytes:
        return chr(token_id).encode()

    def id_of(self, token: str) -> int | None:
        return ord(token) if len(token) == 1 and ord(token) < self.vocab_size else None

    def is_special(self, token_id: int) -> bool:
        return token_id == 2


@dataclass(frozen=True)
class Before:
    """Token history: ``prompt`` and ``generated``. ``ends`` are the tokens that end a text."""

    prompt: tuple[int, ...] = ()
    generated: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    seed: int = 0

    @property
    def ids(self) -> list[int]:
        return [*self.prompt, *self.generated]


def softmax(logits: Floats) -> Floats:
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def surprise(p: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return np.asarray(-np.log(p))


def entropy(p: Floats) -> float:
    some = p[p > 0]
    return float(-(some * np.log(some)).sum())


def ranked(values: Floats) -> NDArray[np.int64]:
    """Indices from the highest value to the lowest. Equal values are in the order of their indices."""
    return np.asarray(sorted(range(len(values)), key=(-values).tolist().__getitem__), np.int64)


def only(logits: Floats, places: Any) -> Floats:
    out = np.full_like(logits, -INF)
    out[places] = logits[places]
    return out


def until(order: NDArray[np.int64], p: Floats, mass: float) -> NDArray[np.int64]:
    """Shortest prefix of ``order`` whose probabilities sum to at least ``mass``."""
    sums = np.cumsum(p[order])
    reached = np.flatnonzero(sums >= mass)
    return order if not len(reached) else order[: reached[0] + 1]


def window(ids: list[int], n: int) -> list[int]:
    return ids if n < 0 else ids[max(len(ids) - n, 0) :]


def penalties(x: Floats, o: dict[str, Any], before: Before) -> Floats:
    x, n = x.copy(), o.get("repeat_last_n", -1)
    p = o.get("repetition_penalty", 1.0)
    seen = window(before.ids, n)
    for token in set(seen):
        x[token] = x[token] / p if x[token] > 0 else x[token] * p
    answer = seen[len(seen) - min(len(seen), len(before.generated)) :]
    for token in set(answer):
        x[token] -= answer.count(token) * o.get("frequency_penalty", 0.0) + o.get("presence_penalty", 0.0)
    return x


def no_repeat_ngram(x: Floats, o: dict[str, Any], before: Before) -> Floats:
    x, n, ids = x.copy(), o["no_repeat_ngram_size"], before.ids
    if n == 0 or len(ids) < n:
        return x
    tail = ids[len(ids) - n + 1 :]
    for i in range(len(ids) - n + 1):
        if ids[i : i + n - 1] == tail:
            x[ids[i + n - 1]] = -INF
    return x


def dry(x: Floats, o: dict[str, Any], before: Before) -> Floats:
    """DRY by brute force: every length at every position. Breakers are single characters."""
    x = x.copy()
    ids = window(before.ids, o.get("dry_penalty_last_n", -1))
    breakers = {ord(c) for c in o.get("dry_sequence_breakers", '\n:"*')}
    allowed, base = o.get("dry_allowed_length", 2), o.get("dry_base", 1.75)
    since = next((n for n, token in enumerate(reversed(ids)) if token in breakers), len(ids))
    longest: dict[int, int] = {}
    for end in range(1, len(ids)):
        n = max(n for n in range(min(end, since) + 1) if ids[end - n : end] == ids[len(ids) - n :])
        longest[ids[end]] = max(longest.get(ids[end], 0), n)
    for token, n in longest.items():
        if n >= allowed and token not in breakers:
            x[token] -= o["dry_multiplier"] * min(base ** float(n - allowed), 3.4e38)
    return x


def logit_bias(x: Floats, o: dict[str, Any], before: Before) -> Floats:
    x = x.copy()
    for token, bias in o["logit_bias"].items():
        x[int(token)] += bias
    return x


def forced(x: Floats, o: dict[str, Any], before: Before) -> Floats:
    """The first token, and the last token that the limit allows, whatever their logits are."""
    place = len(before.generated)
    name = "forced_bos_token_id" if place == 0 else "forced_eos_token_id" if place == LIMIT - 1 else ""
    token = o.get(name, -1)
    return x if token < 0 else np.where(np.arange(len(x)) == token, 0.0, -INF)


def banned(x: Floats, o: dict[str, Any], before: Before) -> Floats:
    x = x.copy()
    for entry in o["banned"]:
        for ids in (
            [[ord(c) for c in entry], [32, *map(ord, entry)]]
            if isinstance(entry, str)
            else [np.atleast_1d(entry).tolist()]
        ):
            if len(ids) == 1 or (before.ids[-len(ids) + 1 :] == ids[:-1]):
                x[ids[-1]] = -INF
    return x


def allowed(x: Floats, o: dict[str, Any], before: Before) -> Floats:
    ids = {i for entry in o["allowed"] for i in ([32, *map(ord, entry)] if isinstance(entry, str) else [entry])}
    return only(x, sorted(ids))


def min_new_tokens(x: Floats, o: dict[str, Any], before: Before) -> Floats:
    x = x.copy()
    if len(before.generated) < o["min_new_tokens"]:
        x[list(before.ends)] = -INF
    return x


def temperature(x: Floats, o: dict[str, Any], before: Before) -> Floats:
    t, r = o["temperature"], o.get("dynatemp_range", 0.0)
    if r:
        n = int((x > -INF).sum())
        share = entropy(softmax(x)) / math.log(n) if n > 1 else 0.0
        t = max(t - r, 0) + (t + r - max(t - r, 0)) * share ** o.get("dynatemp_exponent", 1.0)
    if t == 0:
        return only(x, ranked(x)[:1])
    with np.errstate(over="ignore"):
        return np.asarray((x - x.max()) / t)


def top_k(x: Floats, o: dict[str, Any], before: Before) -> Floats:
    return only(x, ranked(x)[: o["top_k"]]) if o["top_k"] else x


def top_p(x: Floats, o: dict[str, Any], before: Before) -> Floats:
    p = softmax(x)
    return x if o["top_p"] == 1 else only(x, until(ranked(x), p, o["top_p"]))


def min_p(x: Floats, o: dict[str, Any], before: Before) -> Floats:
    p = softmax(x)
    return only(x, p >= o["min_p"] * p.max())


def typical(x: Floats, o: dict[str, Any], before: Before) -> Floats:
    p = softmax(x)
    order = ranked(-np.abs(surprise(p) - entropy(p)))
    return x if o["typical_p"] == 1 else only(x, until(order, p, o["typical_p"]))


def top_n_sigma(x: Floats, o: dict[str, Any], before: Before) -> Floats:
    n = o["top_n_sigma"]
    return x if n == 0 else only(x, x >= x.max() - n * np.std(x[x > -INF]))


def epsilon(x: Floats, o: dict[str, Any], before: Before) -> Floats:
    p = softmax(x)
    return only(x, (p >= o["epsilon_cutoff"]) | (x == x.max()))


def eta(x: Floats, o: dict[str, Any], before: Before) -> Floats:
    p, e = softmax(x), o["eta_cutoff"]
    return only(x, (p >= min(e, math.sqrt(e) * math.exp(-entropy(p)))) | (x == x.max()))


def top_h(x: Floats, o: dict[str, Any], before: Before) -> Floats:
    order = ranked(x)[:100]
    p = softmax(x[order])
    shares = np.where(p > 0, p * np.where(p > 0, surprise(p), 0), 0)
    within = (np.cumsum(shares) <= o["top_h"] * entropy(p)) & (p > 0)
    return x if o["top_h"] == 1 else only(x, order[: max(int(within.sum()), 1)])


def xtc(x: Floats, o: dict[str, Any], before: Before) -> Floats:
    random = np.random.Generator(np.random.Philox(key=before.seed, counter=len(before.generated))).random(2)[1]
    p = softmax(x)
    above = [i for i in ranked(x) if p[i] >= o["xtc_threshold"]]
    if random >= o["xtc_probability"] or o["xtc_threshold"] > 0.5 or len(above) < 2:
        return x
    x = x.copy()
    x[above[:-1]] = -INF
    return x


def mirostat(x: Floats, o: dict[str, Any], before: Before) -> Floats:
    """The cut of the first token, at twice the target."""
    p = softmax(x)
    within = surprise(p) / math.log(2) <= 2 * o["mirostat_tau"]
    return only(x, within if within.any() else [int(x.argmax())])


Reference = Callable[[Floats, dict[str, Any], Before], Floats]
REFERENCES: dict[str, Reference] = {
    one.__name__: one
    for one in (
        penalties, no_repeat_ngram, dry, logit_bias, banned, allowed, min_new_tokens, forced, temperature, top_k, top_p,
        min_p, typical, top_n_sigma, epsilon, eta, top_h, xtc, mirostat,
    )
}  # fmt: skip


USUAL = {
    "penalties": {"repetition_penalty": 1.2, "frequency_penalty": 0.3},
    "no_repeat_ngram": {"no_repeat_ngram_size": 2},
    "dry": {"dry_multiplier": 0.8},
    "logit_bias": {"logit_bias": {0: -INF, 1: 3.0}},
    "banned": {"banned": [0]},
    "allowed": {"allowed": [0, 1]},
    "min_new_tokens": {"min_new_tokens": 9},
    "forced": {"forced_bos_token_id": 1},
    "temperature": {"temperature": 0.7, "dynatemp_range": 0.2},
    "top_k": {"top_k": 40},
    "top_p": {"top_p": 0.9},
    "min_p": {"min_p": 0.05},
    "typical": {"typical_p": 0.5},
    "top_n_sigma": {"top_n_sigma": 1.0},
    "epsilon": {"epsilon_cutoff": 3e-6},
    "eta": {"eta_cutoff": 2e-4},
    "top_h": {"top_h": 0.5},
    "xtc": {"xtc_probability": 1.0, "xtc_threshold": 1e-5},
    "mirostat": {"mirostat": 2, "mirostat_tau": 5.0},
}
"""Options that make each step change the logits."""
