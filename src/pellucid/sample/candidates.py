"""What the steps of a chain hand on: the tokens still possible, and their logits.

Most steps look at a few tokens or at sums over all, so nothing here makes an array of the vocabulary's size unless it
is asked for: a temperature is remembered, not multiplied by, and the highest logits and the sums of exponentials come
from compiled code (``kernels/logits_top.py``, ``kernels/logits_softmax.py``), in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import KernelError
from pellucid.kernels.logits_softmax import BLOCK, Softmax
from pellucid.kernels.logits_top import Top
from pellucid.runtime.call import Call
from pellucid.runtime.memory import address

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

FEW = 512  # of so many best ones the compiled search is faster than a partition of all
SHORTEST = 16  # logits that the kernels take at least
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Sums:
    """Of weights exp(z), z = logit - highest logit: their sum, that of each ``BLOCK``, and the sum of exp(z) * z."""

    total: float
    moment: float
    blocks: Floats

    @property
    def entropy(self) -> float:
        """Of the distribution, in nats."""
        return max(math.log(self.total) - self.moment / self.total, 0.0)


@dataclass(frozen=True)
class Candidates:
    """``ids`` (n,) ascending, None for the whole vocabulary; their logits are ``raw`` (n,) float32 / ``temperature``.

    ``temperature`` is 1e-30 to 1e30.

    A logit of minus infinity is a token that is forbidden; at least one is finite, none is NaN or plus infinity.
    """

    ids: Ints | None
    raw: NDArray[np.float32]
    temperature: float = 1.0

    @classmethod
    def of(cls, logits: NDArray[np.floating[Any]], where: str) -> Candidates:
        """The whole vocabulary, from the logits (V,) of a model.

        Raises:
            KernelError: a logit is NaN or infinite, or all are minus infinity: there is no distribution. It names
                ``where``.
        """
        made = cls(None, np.ascontiguousarray(logits, np.float32))
        if not math.isfinite(made.highest):  # a NaN counts as the largest
            raise KernelError(
                f"{where}: the logit of id {made.best} is {made.highest}: the weights are damaged, or a kernel is wrong"
            )
        return made

    def __len__(self) -> int:
        return len(self.raw)

    @cached_property
    def best(self) -> int:
        """The place of the highest logit, of equal ones the first."""
        return int(self.raw.argmax())

    @cached_property
    def highest(self) -> float:
        """The highest of ``raw``."""
        return float(self.raw[self.best])

    @property
    def possible(self) -> bool:
        """Whether there is a token that is not forbidden."""
        return len(self.raw) > 0 and self.highest > -math.inf

    @property
    def logits(self) -> Floats:
        """(n,) float64."""
        return self.logits_at(slice(None))

    def logits_at(self, places: Ints | slice) -> Floats:
        """The logits at some places, float64."""
        return np.asarray(self.raw[places].astype(np.float64) / self.temperature, np.float64)

    def exponents(self, places: Ints | slice = slice(None)) -> Floats:
        """Logits minus the highest logit, (n,) float64: the logarithms of ``weights``."""
        return np.asarray((self.raw[places].astype(np.float64) - self.highest) * self._scale, np.float64)

    @cached_property
    def sums(self) -> Sums:
        """Sums over all candidates; no array of their size is made."""
        return _softmax(self.raw, self.highest, self._scale, None)

    @cached_property
    def weights(self) -> Floats:
        """exp(``exponents``), (n,): probabilities, but for the division by their sum."""
        weights = np.empty(len(self.raw))
        self.__dict__["sums"] = _softmax(self.raw, self.highest, self._scale, weights)
        return weights

    def weights_at(self, places: Ints | slice) -> Floats:
        """The weights at some places."""
        part = np.ascontiguousarray(self.raw[places])
        weights = np.empty(len(part))
        _softmax(part, self.highest, self._scale, weights)
        return weights

    def probabilities(self) -> Floats:
        """softmax of the logits, (n,) float64."""
        weights = self.weights
        return np.asarray(weights / self.sums.total, np.float64)

    def log_probabilities(self, places: Ints | slice = slice(None)) -> Floats:
        """Their logarithms, at some places."""
        return np.asarray(self.exponents(places) - math.log(self.sums.total), np.float64)

    def top(self, k: int) -> Ints:
        """The places of the ``k`` highest, from the highest on; of equal ones the lowest id first."""
        k = min(k, len(self.raw))
        if k > FEW:
            return lowest(-self.raw, k)
        places, values = np.empty(k, np.int64), np.empty(k, np.float32)
        raw = self.raw
        _top()(logits=address(raw), count=len(raw), k=k, places=address(places), values=address(values))
        return places

    def likeliest(self, mass: float) -> Ints:
        """The fewest places whose probabilities sum to ``mass``, from the likeliest on."""
        return fewest(self.top, self.weights_at, len(self.raw), mass * self.sums.total)

    def keep(self, places: Ints) -> Candidates:
        """Only the candidates at these places; their order (ascending ids) is kept."""
        if len(places) == len(self.raw):
            return self
        places = np.sort(places)
        return replace(self, ids=places if self.ids is None else self.ids[places], raw=self.raw[places])

    def keep_above(self, lowest: float) -> Candidates:
        """Only those whose exponent is ``lowest`` or more, and the highest."""
        bound = min(lowest, 0.0) / self._scale + self.highest
        # The comparison is of float32, in which no candidate lies between the bound and its neighbour above.
        above = (
            np.float32(bound)
            if np.float32(bound) >= bound
            else np.nextafter(np.float32(bound), np.float32(np.inf))
        )
        return self.keep(np.flatnonzero(self.raw >= min(above, np.float32(self.highest))))

    def with_logits(self, places: Ints, logits: NDArray[np.floating[Any]]) -> Candidates:
        """With other logits at some places; minus infinity forbids."""
        raw = self.raw.copy()
        changed = np.asarray(logits, np.float64) * self.temperature
        raw[places] = np.where(np.isneginf(changed), -np.inf, np.clip(changed, -LARGEST, LARGEST))
        return replace(self, raw=raw)

    def forbid(self, ids: Ints) -> Candidates:
        """Without these tokens: what is left of the vocabulary keeps its places."""
        places = self.places(ids)
        return self.with_logits(places, np.full(len(places), -np.inf)) if len(places) else self

    def places(self, ids: Ints) -> Ints:
        """Where tokens are; those that are no candidates are left out."""
        if self.ids is None:
            return ids[(ids >= 0) & (ids < len(self.raw))]
        places = np.searchsorted(self.ids, ids)
        places[places == len(self.ids)] = 0
        return np.asarray(places[self.ids[places] == ids], np.int64)

    def id_at(self, place: int) -> int:
        """The token at a place."""
        return place if self.ids is None else int(self.ids[place])

    def ids_at(self, places: Ints | slice = slice(None)) -> Ints:
        """The tokens at some places; all of them if not said otherwise."""
        return (np.arange(len(self.raw)) if self.ids is None else self.ids)[places]

    def draw(self, number: float) -> int:
        """The place that a number in [0, 1) falls on, candidates laid side by side, each as wide as it is likely."""
        if len(self.raw) <= BLOCK:
            return _fall(np.cumsum(self.weights), number)
        ends = np.cumsum(self.sums.blocks)
        block = _fall(ends, number)
        first = block * BLOCK
        inside = np.cumsum(self.weights_at(slice(first, first + BLOCK)))
        before = ends[block - 1] if block else 0.0
        return first + _fall(inside, (number * ends[-1] - before) / inside[-1])

    @property
    def _scale(self) -> float:
        return 1.0 / self.temperature


def fewest(
    ordered: Callable[[int], Ints], weights: Callable[[Ints], Floats], count: int, mass: float
) -> Ints:
    """The fewest of ``count`` places, in an order, whose weights sum to ``mass``; all if rounding hides the last.

    ``ordered`` gives the first k places: a few are looked at first, for they are usually enough.
    """
    k = min(FEW // 2, count)
    while True:
        places = ordered(k)
        sums = np.cumsum(weights(places))
        if sums[-1] >= mass or k == count:
            return places[: int(np.searchsorted(sums, mass)) + 1]
        k = min(k * 16, count)


def lowest(values: NDArray[np.floating[Any]], k: int) -> Ints:
    """The places of the ``k`` lowest values, from the lowest on; of equal ones the first place first."""
    if k < len(values):
        bound = np.partition(values, k - 1)[k - 1]
        below = np.flatnonzero(values < bound)
        places = np.concatenate([below, np.flatnonzero(values == bound)[: k - len(below)]])
    else:
        places = np.arange(len(values))
    return np.asarray(places[np.lexsort((places, values[places]))], np.int64)


def _fall(ends: Floats, number: float) -> int:
    """The first place whose end is beyond a share of the last end; the last place that is not empty, at the edge."""
    at = max(number * ends[-1], 0.0)
    if at >= ends[-1]:
        return int(np.searchsorted(ends, ends[-1]))
    return int(np.searchsorted(ends, at, side="right"))


@cache
def _top() -> Call:
    return Call("logits.top", Top)


@cache
def _sums() -> Call:
    return Call("logits.softmax", Softmax)


def _softmax(raw: NDArray[np.float32], highest: float, scale: float, weights: Floats | None) -> Sums:
    """The sums, and the weights into an array of as many as there are logits."""
    count = len(raw)
    if count < SHORTEST:
        padded = np.full(SHORTEST, -np.inf, np.float32)
        padded[:count] = raw
        out = None if weights is None else np.empty(SHORTEST)
        sums = _softmax(padded, highest, scale, out)
        if weights is not None and out is not None:
            weights[:] = out[:count]
        return sums
    blocks, totals = np.empty(-(-count // BLOCK)), np.empty(2)
    _sums()(
        logits=address(raw),
        count=count,
        highest=highest,
        scale=scale,
        weights=0 if weights is None else address(weights),
        blocks=address(blocks),
        totals=address(totals),
    )
    return Sums(float(totals[0]), float(totals[1]), blocks)
