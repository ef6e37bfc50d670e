"""The chain: steps in order, then softmax, then a draw. Greedy is the chain with nothing to draw.

Random numbers are counter-based (Philox; Salmon et al. 2011), keyed by the seed and the token's index, so that a
token's number depends on nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import KernelError
from pellucid.sample.candidates import Candidates, Step


def uniform(seed: int, index: int) -> float:
    """The random number in [0, 1) of a seed's token number ``index``."""
    generator = np.random.Generator(np.random.Philox(key=seed, counter=index))
    return float(generator.random())


@dataclass(frozen=True)
class Chain:
    """``steps`` in order; ``greedy`` takes the most likely token (of equal ones the lowest id), else one is drawn."""

    steps: tuple[Step, ...] = ()
    greedy: bool = False
    seed: int = 0

    def sample(self, logits: NDArray[np.floating[Any]], index: int) -> int:
        """The token that follows; ``logits`` (V,), ``index`` counts the request's tokens from 0.

        Raises:
            KernelError: a logit is NaN or infinite, or all are minus infinity: there is no distribution.
        """
        best = int(np.argmax(logits))  # a NaN counts as the largest
        if not np.isfinite(logits[best]):
            raise KernelError(
                f"token {index}: the logit of id {best} is {logits[best]}: "
                "the weights are damaged, or a kernel is wrong"
            )
        if self.greedy and not self.steps:
            return best
        candidates = self.candidates(logits)
        if self.greedy:
            return candidates.id_at(int(np.argmax(candidates.logits)))
        sums = np.cumsum(candidates.probabilities())
        drawn = uniform(self.seed, index) * sums[-1]
        if drawn >= sums[-1]:  # rounded up
            return candidates.id_at(int(np.searchsorted(sums, sums[-1])))
        return candidates.id_at(int(np.searchsorted(sums, drawn, side="right")))

    def candidates(self, logits: NDArray[np.floating[Any]]) -> Candidates:
        """What is left after all steps."""
        candidates = Candidates(None, logits)
        for step in self.steps:
            candidates = step.apply(candidates)
        return candidates
