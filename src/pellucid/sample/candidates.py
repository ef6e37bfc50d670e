"""The candidates that sampler steps pass on: the tokens that are still possible, and their logits.

Most steps need only a few tokens, or sums over all tokens. So arrays of the vocabulary's size are allocated only when a
step needs them. A temperature is stored as a number, and the logits are divided by it only on access. Compiled code
finds the highest logits and sums the exponentials in float64 (``kernels/ops/logits.py``).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from functools import cache, cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import KernelError
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.ops.logits import SOFTMAX_BLOCK, MaskRecord, SoftmaxRecord, SpreadRecord, TopRecord
from pellucid.runtime.executor import Call
from pellucid.runtime.memory import address

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Up to this k the compiled top-k search is faster than NumPy's partition.
FEW = 512
# Minimum number of logits that the kernels take.
MIN_LOGITS = 16
# Lower temperatures have the same effect as this temperature.
MIN_TEMPERATURE = 1e-30
MAX_FLOAT32 = float(np.finfo(np.float32).max)
TOP, SUMS = KernelKey("logits.top"), KernelKey("logits.softmax")  # most chains use both


class Sums(Struct, frozen=True):
    """Sums over weights exp(z), z = logit - highest logit.

    ``total`` is the sum of exp(z), ``moment`` the sum of exp(z) * z. ``blocks`` has the sum of exp(z) of each run of
    ``BLOCK`` tokens.
    """

    total: float
    moment: float
    blocks: Floats

    @property
    def entropy(self) -> float:
        """The entropy of the distribution, in nats."""
        return max(math.log(self.total) - self.moment / self.total, 0.0)


DAMAGED = "the weights are damaged, or a kernel is wrong"
"""The end of the error messages about logits that give no distribution. If edits are the cause, ``engine/recorder.py``
replaces it."""


class Candidates(Struct, frozen=True, dict=True):
    """The tokens ``ids`` (n,), or all tokens if None. Their logits are ``raw`` (n,) float32 divided by ``temperature``.

    The tokens are in ascending order of ids or, if ``ranked``, in descending order of logits with the lowest id first
    on ties. ``temperature`` is 1e-30 to 1e30. A logit of minus infinity marks a forbidden token. At least one logit is
    finite. No logit is NaN or plus infinity.
    """

    ids: Ints | None
    raw: NDArray[np.float32]
    temperature: float = 1.0
    ranked: bool = False

    @classmethod
    def of(cls, logits: NDArray[np.floating[Any]], where: str) -> Candidates:
        """The whole vocabulary, from a model's logits (V,).

        Raises:
            KernelError: a logit is NaN or plus infinity, or all are minus infinity: there is no distribution. The
                message names ``where``.
        """
        raw = np.ascontiguousarray(logits, np.float32)
        candidates, best = cls(None, raw), int(raw.argmax())
        # Every token needs both values. They are set directly, because a cached property takes a lock.
        candidates.__dict__.update(best=best, highest=float(raw[best]))
        if not math.isfinite(candidates.highest):  # argmax finds a NaN before all numbers
            raise KernelError(f"{where}: the logit of id {candidates.best} is {candidates.highest}: {DAMAGED}")
        return candidates

    def __len__(self) -> int:
        return len(self.raw)

    @cached_property
    def best(self) -> int:
        """The position of the highest logit; the first on ties."""
        return 0 if self.ranked else int(self.raw.argmax())

    @cached_property
    def highest(self) -> float:
        """The highest of ``raw``."""
        return float(self.raw[self.best])

    @property
    def possible(self) -> bool:
        """True if at least one token is not forbidden."""
        return len(self.raw) > 0 and self.highest > -math.inf

    def logits(self, positions: Ints | slice = slice(None)) -> Floats:
        """The logits at some positions (all by default), float64."""
        return np.asarray(self.raw[positions].astype(np.float64) / self.temperature, np.float64)

    def exponents(self, positions: Ints | slice = slice(None)) -> Floats:
        """Logits minus the highest logit, float64: the logarithms of ``weights``."""
        return np.asarray((self.raw[positions].astype(np.float64) - self.highest) / self.temperature, np.float64)

    @cached_property
    def sums(self) -> Sums:
        """Sums over all candidates, computed without an array of their size."""
        return _softmax(self.raw, self.highest, self.temperature, None)

    @cached_property
    def weights(self) -> Floats:
        """exp(``exponents``), (n,) float64: unnormalized probabilities."""
        weights = np.empty(len(self.raw))
        self.__dict__["sums"] = _softmax(self.raw, self.highest, self.temperature, weights)
        return weights

    @property
    def allowed(self) -> int:
        """The number of candidates that are not forbidden."""
        return int(self._spread[0])

    @property
    def deviation(self) -> float:
        """The standard deviation of the finite logits."""
        count, total, squares = self._spread
        return math.sqrt(max(squares / count - (total / count) ** 2, 0.0)) / self.temperature

    @property
    def _spread(self) -> list[float]:
        raw, totals = _padded(self.raw), np.empty(3)
        _spread()(logits=address(raw), count=len(raw), highest=self.highest, totals=address(totals))
        return totals.tolist()

    @cached_property
    def ends(self) -> Any:
        """The cumulative sums of the weights, (n,); a list if there are few candidates."""
        if len(self.raw) <= FEW:  # for a few numbers a call of NumPy costs more than the sums
            return list(accumulate(self.weights.tolist()))
        return np.cumsum(self.weights)

    def weights_at(self, positions: Ints | slice) -> Floats:
        """The weights at some positions."""
        part = np.ascontiguousarray(self.raw[positions])
        weights = np.empty(len(part))
        _softmax(part, self.highest, self.temperature, weights)
        return weights

    def probabilities(self) -> Floats:
        """softmax of the logits, (n,) float64."""
        weights = self.weights
        return np.asarray(weights / self.sums.total, np.float64)

    def log_probabilities(self, positions: Ints | slice = slice(None)) -> Floats:
        """The log-probabilities at some positions (all by default), float64."""
        return np.asarray(self.exponents(positions) - math.log(self.sums.total), np.float64)

    def top(self, k: int) -> Ints:
        """The positions of the ``k`` highest logits, in descending order; the lowest id first on ties."""
        k = min(k, len(self.raw))
        if self.ranked:
            return np.arange(k)
        if k > FEW:
            return lowest(-self.raw, k)
        positions, values, raw = np.empty(k, np.int64), np.empty(k, np.float32), self.raw
        _top()(logits=address(raw), count=len(raw), k=k, places=address(positions), values=address(values))
        return positions

    def keep_top(self, k: int) -> Candidates:
        """Only the ``k`` candidates with the highest logits, ranked; unchanged if there are at most ``k``."""
        if self.ranked:
            return self.first(k)
        return self if k >= len(self.raw) else self._take_ranked(self.top(k))

    def keep_likeliest(self, mass: float) -> Candidates:
        """The fewest candidates whose probabilities sum to ``mass``: the most likely candidates, ranked."""
        if not self.ranked and len(self.raw) > FEW:
            positions = fewest(self.top, self.weights_at, len(self.raw), mass * self.sums.total)
            return self._take_ranked(positions)
        ranked = self if self.ranked else self._take_ranked(self.top(len(self.raw)))
        ends = ranked.ends
        return ranked.first(bisect_left(ends, mass * ends[-1]) + 1)

    def keep_above(self, lowest: float) -> Candidates:
        """Only candidates with an exponent of at least ``lowest``; candidates with the highest logit always stay."""
        above = self.raw >= least_float32(min(lowest, 0.0) * self.temperature + self.highest)
        return self.first(int(np.count_nonzero(above))) if self.ranked else self.keep(np.flatnonzero(above))

    def first(self, n: int) -> Candidates:
        """Only the first ``n`` candidates."""
        if n >= len(self.raw):
            return self
        candidates = self._replace(None if self.ids is None else self.ids[:n], self.raw[:n])
        if self.ranked:  # the highest logit stays the same
            candidates.__dict__.update(
                {name: self.__dict__[name][:n] for name in ("weights", "ends") if name in self.__dict__}
            )
            candidates.__dict__.update({"highest": self.highest})
        elif self.__dict__.get("best", n) < n:  # the best candidate is among the first n
            candidates.__dict__["best"] = self.best
        return candidates

    def keep(self, positions: Ints) -> Candidates:
        """Only the candidates at these positions, or where a mask is True; the order does not change."""
        if positions.dtype == np.bool_:
            positions = np.flatnonzero(positions)
        if len(positions) == len(self.raw):
            return self
        positions = np.sort(positions)
        return self._replace(self.ids_at(positions), self.raw[positions])

    def with_logits(self, positions: Ints, logits: NDArray[np.floating[Any]]) -> Candidates:
        """A copy with new logits at some positions, in ascending order of ids; minus infinity forbids a token."""
        raw = self.raw.copy()
        changed = np.asarray(logits, np.float64) * self.temperature
        raw[positions] = np.where(np.isneginf(changed), -np.inf, np.clip(changed, -MAX_FLOAT32, MAX_FLOAT32))
        if self.ids is None or not self.ranked:
            return self._replace(self.ids, raw)
        order = np.argsort(self.ids)
        return Candidates(self.ids[order], raw[order], self.temperature)

    def plus(self, ids: Ints, amounts: NDArray[np.floating[Any]]) -> Candidates:
        """A copy with ``amounts`` added to the logits of ``ids``; tokens that are not candidates are skipped."""
        among = self.has(ids)
        ids, amounts = ids[among], amounts[among]
        positions = self.positions(ids)
        return self.with_logits(positions, self.logits(positions) + amounts)

    def at_temperature(self, temperature: float) -> Candidates:
        """A copy with the logits divided by ``temperature``, in addition to the present temperature."""
        t = min(max(self.temperature * float(temperature), MIN_TEMPERATURE), 1 / MIN_TEMPERATURE)
        candidates = Candidates(self.ids, self.raw, t, self.ranked)
        candidates.__dict__["best"] = self.best
        return candidates

    def forbid(self, ids: Ints) -> Candidates:
        """Forbid these tokens: they stay candidates, with logits of minus infinity."""
        positions = self.positions(ids)
        return self.with_logits(positions, np.full(len(positions), -np.inf)) if len(positions) else self

    def allow(self, mask: NDArray[np.uint32]) -> Candidates:
        """Only tokens whose bit is set. ``mask`` has a bit for each token of the vocabulary, lowest bit first.

        If many bits are set, the other tokens get a logit of minus infinity, and no position changes.
        """
        if self.ids is not None:
            return self.keep(np.flatnonzero(mask[self.ids >> 5] >> (self.ids & 31).astype(np.uint32) & 1))
        words = np.flatnonzero(mask)
        if len(words) <= FEW or len(self.raw) < MIN_LOGITS:
            bits = np.unpackbits(mask[words].view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")
            at, bit = np.nonzero(bits)
            return self.keep(self.positions(words[at] * 32 + bit))
        out, raw = np.empty_like(self.raw), self.raw
        _mask()(logits=address(raw), count=len(raw), mask=address(mask), out=address(out))
        return self._replace(None, out)

    def has(self, ids: Ints) -> NDArray[np.bool_]:
        """True for each token that is a candidate."""
        return (ids >= 0) & (ids < len(self.raw)) if self.ids is None else np.isin(ids, self.ids)

    def positions(self, ids: Ints) -> Ints:
        """The positions of tokens; tokens that are not candidates are left out."""
        if self.ids is None:
            return ids[self.has(ids)]
        order = np.argsort(self.ids, kind="stable")
        indices = np.searchsorted(self.ids, ids, sorter=order)
        positions = order[np.minimum(indices, len(order) - 1)]
        return np.asarray(positions[self.ids[positions] == ids], np.int64)

    def id_at(self, position: int) -> int:
        """The token at a position."""
        return position if self.ids is None else int(self.ids[position])

    def ids_at(self, positions: Ints | slice = slice(None)) -> Ints:
        """The tokens at some positions (all by default)."""
        if self.ids is not None:
            return self.ids[positions]
        return np.arange(len(self.raw))[positions] if isinstance(positions, slice) else positions

    def draw(self, number: float) -> int:
        """The position that a number in [0, 1) selects: inverse transform sampling of the probabilities."""
        if self.ranked or len(self.raw) <= SOFTMAX_BLOCK:
            return _inverse_cdf(self.ends, number)
        ends = np.cumsum(self.sums.blocks)
        block = _inverse_cdf(ends, number)
        first = block * SOFTMAX_BLOCK
        inside = np.cumsum(self.weights_at(slice(first, first + SOFTMAX_BLOCK)))
        before = ends[block - 1] if block else 0.0
        return first + _inverse_cdf(inside, float((number * ends[-1] - before) / inside[-1]))

    def _take_ranked(self, positions: Ints) -> Candidates:
        """The candidates at some positions, in order of rank."""
        candidates = Candidates(self.ids_at(positions), self.raw[positions], self.temperature, ranked=True)
        candidates.__dict__["highest"] = self.highest
        return candidates

    def _replace(self, ids: Ints | None, raw: NDArray[np.float32]) -> Candidates:
        return Candidates(ids, raw, self.temperature, self.ranked)


def fewest(ordered: Callable[[int], Ints], weights: Callable[[Ints], Floats], count: int, mass: float) -> Ints:
    """The fewest of ``count`` positions, taken in a given order, whose weights sum to ``mass``.

    ``ordered(k)`` returns the first k positions. The search starts with a small k, which is usually enough. If rounding
    keeps the sum below ``mass``, all positions are returned.
    """
    k = min(FEW // 2, count)
    while True:
        positions = ordered(k)
        sums = np.cumsum(weights(positions))
        if sums[-1] >= mass or k == count:
            return positions[: int(np.searchsorted(sums, mass)) + 1]
        k = min(k * 16, count)


def lowest(values: NDArray[np.floating[Any]], k: int) -> Ints:
    """The positions of the ``k`` lowest values, in ascending order; the lowest position first on ties."""
    if k < len(values):
        bound = np.partition(values, k - 1)[k - 1]
        below = np.flatnonzero(values < bound)
        positions = np.concatenate([below, np.flatnonzero(values == bound)[: k - len(below)]])
    else:
        positions = np.arange(len(values))
    return np.asarray(positions[np.lexsort((positions, values[positions]))], np.int64)


def least_float32(bound: float) -> np.float32:
    """The least float32 that is not below ``bound``. A float32 is at least ``bound`` if it is at least this number.

    NumPy rounds a Python float to float32 before a comparison (NEP 50), and the rounded bound may be below ``bound``.
    """
    if not -MAX_FLOAT32 <= bound <= MAX_FLOAT32:
        return np.float32(math.copysign(math.inf if bound > 0 else MAX_FLOAT32, bound))
    least = np.float32(bound)
    return least if float(least) >= bound else np.nextafter(least, np.float32(np.inf))


def _inverse_cdf(ends: Any, number: float) -> int:
    """The first position whose cumulative weight exceeds ``number`` times the total.

    If rounding leaves no such position, returns the last position with a weight above 0.
    """
    last = ends[-1]
    at = max(number * last, 0.0)
    return bisect_left(ends, last) if at >= last else bisect_right(ends, at)


_top = cache(lambda: Call(TOP, TopRecord))
_mask = cache(lambda: Call(KernelKey("logits.mask"), MaskRecord))
_spread = cache(lambda: Call(KernelKey("logits.spread"), SpreadRecord))
_sums = cache(lambda: Call(SUMS, SoftmaxRecord))


def _padded(raw: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits padded with minus infinity to the least number that the kernels take."""
    missing = MIN_LOGITS - len(raw)
    return raw if missing <= 0 else np.pad(raw, (0, missing), constant_values=-np.inf)


def _softmax(raw: NDArray[np.float32], highest: float, temperature: float, weights: Floats | None) -> Sums:
    """The sums of the weights; ``weights`` (n,), if given, receives the weights."""
    count = len(raw)
    if count < MIN_LOGITS:
        out = None if weights is None else np.empty(MIN_LOGITS)
        sums = _softmax(_padded(raw), highest, temperature, out)
        if weights is not None and out is not None:
            weights[:] = out[:count]
        return sums
    blocks, totals = np.empty(-(-count // SOFTMAX_BLOCK)), np.empty(2)
    _sums()(
        logits=address(raw),
        count=count,
        highest=highest,
        scale=1.0 / temperature,
        weights=0 if weights is None else address(weights),
        blocks=address(blocks),
        totals=address(totals),
    )
    return Sums(float(totals[0]), float(totals[1]), blocks)
