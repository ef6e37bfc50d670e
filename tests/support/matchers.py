"""Calls of llguidance's matchers, which a test may watch or delay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llguidance
import pytest

from pellucid.sample.grammars import matching

Called = Callable[..., Any]
"""Makes a call: (name, method, *arguments) → result."""


def matchers_called_by(patch: pytest.MonkeyPatch, called: Called) -> None:
    """Make each call of a matcher's method through ``called``."""
    real, consume = llguidance.LLMatcher, matching.consume

    class Static(type):
        def __getattr__(cls, name: str) -> Any:
            return getattr(real, name)

    class Matcher(metaclass=Static):
        def __init__(self, *given: Any, **options: Any) -> None:
            self.matcher = real(*given, **options)

        def deep_copy(self) -> Matcher:
            copy = object.__new__(Matcher)
            copy.matcher = self.matcher.deep_copy()
            return copy

        def __getattr__(self, name: str) -> Any:
            method = getattr(self.matcher, name)
            return lambda *given: called(name, method, *given)

    patch.setattr(llguidance, "LLMatcher", Matcher)
    patch.setattr(matching, "consume", lambda matcher, token, spare: consume(matcher.matcher, token, spare.matcher))
