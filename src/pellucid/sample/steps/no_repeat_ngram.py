"""No repeated n-grams: forbids tokens that would complete an n-gram that has occurred (Paulus et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pellucid.sample.candidates import Candidates
from pellucid.sample.checking import whole
from pellucid.sample.step import SamplerStep, TokenHistory, option


@dataclass(frozen=True)
class NoRepeatNgram(SamplerStep):
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
