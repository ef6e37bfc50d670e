"""The position encodings of a spec (``spec.py``)."""

from __future__ import annotations

import math
from typing import Literal

from msgspec import Struct

Pairing = Literal["interleaved", "half"]


class RotaryScaling(Struct, frozen=True):
    """The scaling of rotary frequencies for contexts longer than the trained context.

    - ``linear`` divides all frequencies by ``factor``.
    - ``llama3`` divides low frequencies by ``factor``, keeps high frequencies and interpolates in between (Llama Team
      2024, as in transformers' ``_compute_llama3_parameters``).
    - ``yarn`` divides frequencies with fewer than ``slow`` rotations over the trained context by ``factor``, keeps
      frequencies with more than ``fast`` rotations, and interpolates in between. It multiplies cosines and sines by
      ``magnitude`` (Peng et al. 2023).
    - ``longrope`` divides each frequency by its own divisor: from ``short`` if the context is at most
      ``trained_context``, otherwise from ``long``. It also multiplies by ``magnitude`` (Ding et al. 2024).
    - ``dynamic`` increases the base if the context exceeds ``trained_context`` (transformers'
      ``_compute_dynamic_ntk_parameters``).

    In this list, "the context" is the context length that the model is loaded with (decision 42).
    """

    kind: Literal["linear", "llama3", "yarn", "longrope", "dynamic"]
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    trained_context: int = 8192
    fast: float = 32.0
    slow: float = 1.0
    magnitude: float = 1.0
    whole_pairs: bool = True
    """True if ``yarn`` rounds the limits of the interpolation outwards to whole pairs."""
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()

    @property
    def follows_context(self) -> bool:
        """True if a context above ``trained_context`` changes the frequencies of all texts."""
        return self.kind in ("longrope", "dynamic")

    @property
    def reach(self) -> int:
        """The maximum context with this scaling; 0 if the maximum is the context that the file states."""
        return int(self.factor * self.trained_context) if self.kind in ("linear", "yarn", "dynamic") else 0


class Rotary(Struct, frozen=True):
    """Rotary positions: the base of the frequencies, the number of rotated values of a head, and their pairing."""

    base: float
    dims: int
    pairing: Pairing
    scaling: RotaryScaling | None = None
    factors: tuple[float, ...] = ()
    """A divisor for each of the dims/2 frequencies; empty if the file has no divisors."""


class Learned(Struct, frozen=True):
    """A learned vector for each of ``count`` positions, added to the embedding."""

    count: int


class Sinusoidal(Struct, frozen=True):
    """Fixed vectors of sines and cosines, added to the embedding (Vaswani et al. 2017).

    With ``endpoint``, pair j of the D/2 pairs has the frequency base^(-j / (D/2 - 1)), as in tensor2tensor; otherwise
    base^(-j / (D/2)), as in the paper. The first half of the vector holds the sines, the second half the cosines. The
    first token has position ``offset``.
    """

    base: float
    offset: int = 0
    endpoint: bool = True


class RelativeBuckets(Struct, frozen=True):
    """Relative positions (Raffel et al. 2020, T5): a learned bias of a score for each head and bucket of distances.

    Half of the ``count`` buckets hold one distance each. The other buckets hold distances up to ``max_distance``, with
    limits that grow geometrically. The last bucket holds all longer distances too. If tokens see tokens on both sides,
    each side has half of the buckets. The blocks share a table (count, H), or have their ``own`` tables.
    """

    count: int
    max_distance: int
    own: bool = False


class RelativePositions(Struct, frozen=True):
    """Relative positions with vectors of their own (He et al. 2021, DeBERTa): disentangled attention.

    The distance i - j of a query at position i and a key at position j has one of 2 ``span`` buckets. If ``longest`` is
    0, each distance from -span to span - 1 has a bucket. Otherwise each distance up to span / 2 has a bucket, and
    larger distances share buckets on a logarithmic scale up to the distance ``longest`` - 1. All distances beyond the
    first or the last bucket have this bucket.

    A score is the sum of up to three products: of the query and the key, of the query and the bucket's key (``keys``),
    of the bucket's query and the key (``queries``). The keys and queries of buckets are projections of their vectors,
    by the matrices of the block's keys and queries if ``shared``, otherwise by matrices of their own.
    """

    span: int
    longest: int = 0
    keys: bool = True
    queries: bool = True
    shared: bool = False
    key_bias: bool = True
    """False: the projection to the buckets' keys has no bias. The projection to their queries always has a bias."""

    @property
    def buckets(self) -> int:
        """Number of buckets."""
        return 2 * self.span

    def bucket(self, distance: int) -> int:
        """The bucket of a distance (transformers' ``make_log_bucket_position``)."""
        size, exact = abs(distance), self.span // 2
        if self.longest and size > exact:
            share = math.log(size / exact) / math.log((self.longest - 1) / exact)
            distance = int(math.copysign(math.ceil(share * (exact - 1)) + exact, distance))
        return min(max(distance + self.span, 0), 2 * self.span - 1)


class QueryScale(Struct, frozen=True):
    """A factor that multiplies queries and grows with their position: 1 + beta log(1 + floor((position + offset) /
    length)) (Meta 2025, Llama 4).
    """

    beta: float
    length: int
    offset: int = 0
