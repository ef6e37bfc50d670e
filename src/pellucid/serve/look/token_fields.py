"""Tokens in the page's form: ids, texts, and characters that consist of several tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pellucid.tokenize import Tokenizer
from pellucid.tokenize.stages.characters import CharacterGroup, several


def described(tokenizer: Tokenizer, ids: Sequence[int]) -> dict[str, Any]:
    """``pieces``: the text of each token. ``characters``: characters of several tokens, as {first, stop, text}."""
    return {
        "pieces": [tokenizer.piece(token) for token in ids],
        "characters": [group._asdict() for group in several(tokenizer.characters(ids))],
    }


def token_fields(tokenizer: Tokenizer, token: int, group: CharacterGroup) -> dict[str, Any]:
    """A token id with its ``piece``. A token that continues a character also has the ``character``."""
    fields = {"token": token, "piece": tokenizer.piece(token)}
    return {**fields, "character": group._asdict()} if several([group]) else fields
