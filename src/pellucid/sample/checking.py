"""Checks of option values by type and range. A check maps a name and a value to the value that a step stores.

All checks raise InvalidRequest, with one line that names the value, the limit and the remedy.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pellucid.errors import InvalidRequest, brief
from pellucid.sample.step import Check
from pellucid.util import checks

# Maximum number of characters of a text.
MAX_CHARACTERS = 4096


@dataclass(frozen=True)
class whole:  # noqa: N801 - called like the functions of this file
    """An integer from ``low`` to ``high``."""

    low: int
    high: int
    hint: str = ""

    def __call__(self, name: str, value: Any) -> int:
        """The value, checked."""
        return checks.whole(name, value, self.low, self.high, self.hint)


@dataclass(frozen=True)
class real:  # noqa: N801
    """A number from ``low`` to ``high``; with ``above`` it must be greater than ``low``."""

    low: float
    high: float
    hint: str = ""
    above: bool = field(default=False, kw_only=True)

    def __call__(self, name: str, value: Any) -> float:
        """The value, checked."""
        return checks.real(name, value, self.low, self.high, self.hint, above=self.above)


def one_of(*choices: str) -> Check:
    """One of several words."""

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise InvalidRequest(f"{name}={brief(value)}: must be one of {', '.join(choices)}")
        return value

    return check


def anything(name: str, value: Any) -> Any:
    """Any value; the step checks it itself."""
    return value


def texts(max_count: int, max_characters: int = MAX_CHARACTERS) -> Check:
    """A text or a list of texts; no text may be empty."""

    def check(name: str, value: Any) -> tuple[str, ...]:
        entries = _entries(name, value, max_count, "texts", "a text or a list of texts")
        return tuple(checks.text(name, text, max_characters) for text in entries)

    return check


def tokens_or_texts(max_count: int, *, sequences: bool = False) -> Check:
    """A list of token ids and texts; with ``sequences``, an entry may also be a list of token ids."""

    def check(name: str, value: Any) -> tuple[Any, ...]:
        return tuple(
            tuple(token(name, index) for index in _at_most(name, entry, MAX_CHARACTERS, "ids in one list"))
            if sequences and isinstance(entry, (list, tuple)) and entry
            else token_or_text(name, entry)
            for entry in _entries(name, value, max_count, "entries", "a list of token ids and texts")
        )

    return check


def tokens(max_count: int) -> Check:
    """A list or an array of token ids."""

    def check(name: str, value: Any) -> tuple[int, ...]:
        ids = value.tolist() if isinstance(value, np.ndarray) else value
        if not isinstance(ids, Sequence) or isinstance(ids, (str, bytes)):
            raise InvalidRequest(f"{name}={brief(ids)}: must be a list of token ids")
        return tuple(token(name, index) for index in _at_most(name, ids, max_count, "ids"))

    return check


def token(name: str, value: Any) -> int:
    """A token id, checked as far as possible without a vocabulary."""
    return checks.whole(f"{name} holds a token id", value, 0, (1 << 31) - 1)


def token_or_text(name: str, value: Any) -> int | str:
    """A token id or a text."""
    if isinstance(value, numbers.Integral):
        return token(name, value)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_CHARACTERS:
        raise InvalidRequest(
            f"{name} holds {brief(value)}: must be a token id or a text of 1 to {MAX_CHARACTERS:,} characters"
        )
    return checks.characters(name, value)


def _entries(name: str, value: Any, limit: int, noun: str, expected: str) -> Sequence[Any]:
    """The entries of a list; a text is one entry."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise InvalidRequest(f"{name}={brief(value)}: must be {expected}")
    return _at_most(name, value, limit, noun)


def _at_most(name: str, value: Sequence[Any], limit: int, noun: str) -> Sequence[Any]:
    if len(value) > limit:
        raise InvalidRequest(f"{name} has {len(value):,} {noun}; the limit is {limit:,}: give fewer")
    return value
