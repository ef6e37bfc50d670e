"""Tokens as the page gets them: by their numbers, with their texts, and the characters that several tokens make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pellucid.tokenize import Tokenizer
from pellucid.tokenize.stages.characters import CharacterGroup, several


def described(tokenizer: Tokenizer, ids: Sequence[int]) -> dict[str, Any]:
    """The ``pieces`` of tokens, a text for each, and ``characters`` that several make: {first, stop, text}."""
    return {
        "pieces": [tokenizer.piece(token) for token in ids],
        "characters": [group._asdict() for group in several(tokenizer.characters(ids))],
    }


def token_fields(tokenizer: Tokenizer, token: int, group: CharacterGroup) -> dict[str, Any]:
    """A token with its ``piece``; a token that continues a character has the ``character`` too."""
    made = {"token": token, "piece": tokenizer.piece(token)}
    return {**made, "character": group._asdict()} if several([group]) else made
