"""The masks of a text, where a masked language model fills in tokens."""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.errors import InvalidRequest
from pellucid.tokenize.tokenizer import Tokenizer


def masks_of(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """The positions of the masks among token ids.

    Raises:
        InvalidRequest: there is no mask, or the tokenizer has no mask token.
    """
    mask = tokenizer.mask_id
    if mask is None:
        raise InvalidRequest("the model's tokenizer names no mask token: no token can be filled in")
    places = [place for place, token in enumerate(ids) if token == mask]
    if not places:
        name = tokenizer.vocabulary.tokens[mask]
        raise InvalidRequest(f"the text has no mask: write {name} where a token is to be filled in")
    return places
