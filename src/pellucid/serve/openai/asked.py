"""What a request is once its body has been read: HTTP and files of requests run it alike."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Protocol

from pellucid.engine.request import RequestGroup
from pellucid.llm import LLM


class Asked(Protocol):
    """A request that has been read."""

    def groups(self, llm: LLM) -> list[RequestGroup]:
        """What it asks of the engine."""
        ...

    def answer(self, groups: Sequence[RequestGroup], llm: LLM, name: str, number: str) -> dict[str, Any]:
        """The body of its answer, when the groups have ended."""
        ...


class Streamed(Asked, Protocol):
    """A request that can be answered in pieces."""

    def stream(
        self, groups: Sequence[RequestGroup], llm: LLM, name: str, number: str, with_usage: bool
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The pieces; the last one has the usage, if it is wanted."""
        ...
