"""Banned: tokens or words that must not occur.

An entry is a token id, a list of ids or a text. The last id of a list is forbidden where the other ids of the list
precede it. A text is forbidden as the tokens that it is encoded as, at the beginning of a text and after a space. The
model can still spell the text with other tokens; only a grammar (``constraint.py``) prevents this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.sample.candidates import Candidates
from pellucid.sample.checking import tokens_or_texts
from pellucid.sample.spelling import split_entries, token_sequences
from pellucid.sample.step import RequestContext, SamplerStep, TokenHistory, option

MAX_ENTRIES = 4096


@dataclass(frozen=True)
class Banned(SamplerStep):
    name, order, kind, off = "banned", 50, "forbid", ()

    banned: Sequence[Any] = option(
        (),
        tokens_or_texts(MAX_ENTRIES, sequences=True),
        "Words that must not occur, separated by commas, or ids.",
        split_entries,
    )
    always: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(0, np.int64), compare=False, repr=False
    )
    sequences: tuple[tuple[int, ...], ...] = field(default=(), repr=False)

    def bind(self, context: RequestContext) -> SamplerStep:
        spelled = [ids for entry in self.banned for ids in token_sequences(context, "banned", entry)]
        alone = sorted({ids[0] for ids in spelled if len(ids) == 1})
        several = tuple(dict.fromkeys(ids for ids in spelled if len(ids) > 1))
        return replace(self, always=np.array(alone, np.int64), sequences=several)

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        ids = history.ids
        ends = [
            s[-1] for s in self.sequences if tuple(ids[max(len(ids) - len(s) + 1, 0) :].tolist()) == s[:-1]
        ]
        ids = np.concatenate([self.always, np.array(ends, np.int64)]) if ends else self.always
        return candidates.forbid(ids)
