"""Random numbers that depend only on the seed and the token's index: counter-based (Philox; Salmon et al. 2011).

For each seed and token index the generator gives a block of four random numbers. The draw uses the number at index
``DRAW`` of the block, and the XTC step the number at index ``XTC``. So a step that needs a random number does not
change the random numbers of other steps.

The generator is Philox 4x64 with ten rounds, as in NumPy. For a single number, this Python code takes a tenth of the
time of constructing NumPy's generator.
"""

from __future__ import annotations

DRAW, XTC = 0, 1

_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_KEY_INCREMENTS = (
    0x9E3779B97F4A7C15,
    0xBB67AE8584CAA73B,
)  # increments of the key per round: the golden ratio, and the square root of 3 minus 1
_WORD = (1 << 64) - 1
ROUNDS = 10


def uniform(seed: int, index: int, which: int = DRAW) -> float:
    """The random number in [0, 1) for token ``index``. ``seed`` is below 2**128, ``index`` below 2**64 - 1."""
    a, b, c, d = index + 1, 0, 0, 0  # NumPy increments the counter before the first block
    key, other = seed & _WORD, seed >> 64
    for _ in range(ROUNDS):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (second >> 64) ^ b ^ key, second & _WORD, (first >> 64) ^ d ^ other, first & _WORD
        key, other = (key + _KEY_INCREMENTS[0]) & _WORD, (other + _KEY_INCREMENTS[1]) & _WORD
    return ((a, b, c, d)[which] >> 11) * 2.0**-53
