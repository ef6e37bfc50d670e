"""The input of an encoder."""

from __future__ import annotations

from msgspec import Struct


class EncoderInput(Struct, frozen=True):
    """The token ids of a text or of a pair of texts, and the types of the tokens (None: all 0).

    If the model does not pool, the outputs are rows of the tokens from ``first_output`` on.
    """

    ids: list[int]
    types: list[int] | None = None
    first_output: int = 0
