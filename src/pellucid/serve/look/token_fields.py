"""Tokens in the page's form: ids, texts, and characters that consist of several tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pellucid.serve.look.prompt_fields import PromptTokens
from pellucid.tokenize import Tokenizer
from pellucid.tokenize.stages.characters import CharacterGroup, several


def described(tokenizer: Tokenizer, ids: Sequence[int]) -> dict[str, Any]:
    """``pieces``: the text of each token. ``characters``: characters of several tokens, as {first, stop, text}."""
    return {
        "pieces": [tokenizer.piece(token) for token in ids],
        "characters": [group._asdict() for group in several(tokenizer.characters(ids))],
    }


def prompt_fields(tokenizer: Tokenizer, prompt: PromptTokens) -> dict[str, Any]:
    """The tokens that the model reads, with their texts. ``source`` has the tokens of an encoder-decoder's source."""
    fields = {"ids": prompt.read, **described(tokenizer, prompt.read)}
    return fields if prompt.source is None else {**fields, "source": source_fields(tokenizer, prompt.source)}


def source_fields(tokenizer: Tokenizer, source: list[int]) -> dict[str, Any]:
    """The tokens of a source with their texts."""
    return {"ids": source, **described(tokenizer, source)}


def token_fields(tokenizer: Tokenizer, token: int, group: CharacterGroup) -> dict[str, Any]:
    """A token id with its ``piece``. A token that continues a character also has the ``character``."""
    fields = {"token": token, "piece": tokenizer.piece(token)}
    return {**fields, "character": group._asdict()} if several([group]) else fields
