"""Matchers of a pattern that use one method, whatever the pattern is."""

from __future__ import annotations

from functools import cache

import pytest

from pellucid.tokenize.patterns import automaton, matcher
from pellucid.tokenize.patterns.matcher import Matcher


def _made(pattern: str, patch: pytest.MonkeyPatch) -> Matcher:
    """A matcher of a pattern that counts as one that may take exponential time."""
    patch.setattr(matcher, "LINEAR", frozenset())
    patch.setattr(matcher, "MAX_SETS", 0)
    found = Matcher(pattern)
    found.spans("a")  # chooses its method
    return found


@cache
def tabled(pattern: str) -> Matcher:
    """A matcher that walks a table."""
    assert automaton.automaton(pattern) is not None, pattern
    with pytest.MonkeyPatch.context() as patch:
        return _made(pattern, patch)


@cache
def searched(pattern: str) -> Matcher:
    """A matcher that runs the ``regex`` package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(automaton, "automaton", lambda pattern: None)
        return _made(pattern, patch)
