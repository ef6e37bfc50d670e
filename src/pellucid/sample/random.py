"""Random numbers that depend on the seed and the token's index alone: counter-based (Philox; Salmon et al. 2011).

A block of four numbers belongs to each token of a seed. Which of them is for what, ``DRAW`` and its like say: so a step
that needs a number changes nobody else's.
"""

from __future__ import annotations

import numpy as np

DRAW, XTC = 0, 1


def uniform(seed: int, index: int, which: int = DRAW) -> float:
    """The number in [0, 1) of a seed's token number ``index``. ``seed`` is below 2**128, ``index`` below 2**256."""
    generator = np.random.Generator(np.random.Philox(key=seed, counter=index))
    return float(generator.random(which + 1)[which])
