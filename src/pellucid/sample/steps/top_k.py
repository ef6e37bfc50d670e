"""Top-k: only the k most likely tokens stay (Fan et al. 2018). On ties the lowest ids stay."""

from __future__ import annotations

from dataclasses import dataclass

from pellucid.sample.candidates import Candidates
from pellucid.sample.checking import whole
from pellucid.sample.step import SamplerStep, TokenHistory, option


@dataclass(frozen=True)
class TopK(SamplerStep):
    name, order, kind, off = "top_k", 100, "cut", 0

    top_k: int = option(40, whole(0, 1 << 31, "0 turns it off"), "Only the N most likely tokens; 0 is off.")

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        return candidates.keep_top(self.top_k)
