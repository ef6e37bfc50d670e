"""Penalties for tokens that have occurred: repetition (Keskar et al. 2019), frequency and presence (OpenAI's API).

    repetition   for tokens of the prompt or the answer: divides a positive logit, multiplies a negative one
    frequency    for tokens of the answer: subtracted from the logit once per occurrence
    presence     for tokens of the answer: subtracted from the logit once

Only the last ``repeat_last_n`` tokens count; -1 is all, as in transformers and vLLM. llama.cpp uses 64, and counts the
prompt for frequency and presence as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pellucid.sample.candidates import Candidates
from pellucid.sample.checking import real, whole
from pellucid.sample.step import SamplerStep, TokenHistory, option


@dataclass(frozen=True)
class Penalties(SamplerStep):
    name, order, kind = "penalties", 10, "change"

    repetition_penalty: float = option(
        1.0,
        real(0.001, 100, "1 turns it off"),
        "Above 1, tokens that occurred before are less likely; 1 is off.",
    )
    frequency_penalty: float = option(
        0.0,
        real(-100, 100, "0 turns it off"),
        "Subtracted from a token's logit for each occurrence in the answer.",
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
