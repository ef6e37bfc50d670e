"""Conversion of words in options to tokens of a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.sample.step import RequestContext
from pellucid.util.checks import token_id


def token_sequences(
    context: RequestContext, name: str, entry: int | str | Sequence[int]
) -> list[tuple[int, ...]]:
    """The token sequences of an entry. A text has two: its tokens at the beginning of a text, and after a space.

    Raises:
        InvalidRequest: an id is outside the vocabulary.
    """
    if isinstance(entry, str):
        ways = (context.tokenizer.encode(text, add_special=False) for text in (entry, f" {entry}"))
        return list(dict.fromkeys(tuple(ids) for ids in ways))
    ids = (entry,) if isinstance(entry, int) else entry
    return [tuple(token_id(name, token, context.vocabulary) for token in ids)]


def single_token(context: RequestContext, name: str, entry: int | str) -> int:
    """The single token of an entry.

    Raises:
        InvalidRequest: a text is not exactly one token, or an id is outside the vocabulary.
    """
    if not isinstance(entry, str):
        return token_sequences(context, name, entry)[0][0]
    ids = context.tokenizer.encode(entry, add_special=False)
    if len(ids) != 1:
        raise InvalidRequest(
            f"{name} holds {brief(entry)}, which is {len(ids)} tokens ({brief(ids)}): give the ids instead"
        )
    return ids[0]


def split_entries(text: str) -> list[Any]:
    """Split command line text at commas: digits become ids, other parts stay texts."""
    return [int(part) if part.strip().isdigit() else part for part in text.split(",") if part]
