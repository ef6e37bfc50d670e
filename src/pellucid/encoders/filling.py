"""The tokens at the masks of a text, from a masked language model (Devlin et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.encoders.model import EncoderModel
from pellucid.engine.encoder_input import EncoderInput
from pellucid.sample.candidates import Candidates
from pellucid.tokenize.masks import masks_of
from pellucid.trace.edits import Edit


class FilledToken(Struct, frozen=True):
    """A token for a mask: its id, its text, its probability, and the text with the token in place of the mask."""

    token: int
    text: str
    probability: float
    filled: str


def fill(
    model: EncoderModel, text: str, top: int = 5, edits: Sequence[Edit] | None = None
) -> list[list[FilledToken]]:
    """The ``top`` most likely tokens for each mask of a text, the most likely first.

    Raises:
        InvalidRequest: the text has no mask, or the tokenizer has no mask token.
    """
    ids = model.inputs.sentences([text])[0]
    places = masks_of(model.tokenizer, ids)
    (rows,) = model.encode([EncoderInput(ids, first_output=places[0])], edits)
    size = model.inputs.vocabulary
    return [_likely(model, ids, place, rows[place - places[0], :size], top) for place in places]


def _likely(
    model: EncoderModel, ids: list[int], place: int, logits: NDArray[np.float32], top: int
) -> list[FilledToken]:
    best = np.argsort(-logits, kind="stable")[:top]
    logs = Candidates.of(logits, f"position {place}").log_probabilities(best)
    tokenizer, found = model.tokenizer, []
    for token, log in zip(best.tolist(), logs.tolist()):
        whole = tokenizer.decode([*ids[:place], token, *ids[place + 1 :]], skip_special=True)
        part = tokenizer.decode([token], skip_special=False)
        found.append(FilledToken(token, part, math.exp(log), whole))
    return found
