"""How an engine is at a moment: what monitoring and a router read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class EngineState:
    """Requests that are ``running`` and ``waiting`` for their first step; ``steps`` so far and their time in seconds;
    how often a request has lost its pages to another; ``pages`` of the cache, those in use, and bytes of those that the
    prefix cache has; and, of a model over several machines, the part of the steps' time that each of its stages takes.
    """

    running: int
    waiting: int
    steps: int
    step_seconds: float
    preemptions: int
    pages: int
    pages_in_use: int
    prefix_cache_bytes: int
    threads: int
    stage_seconds: Sequence[float] = ()


@dataclass(frozen=True)
class ReplicaStates:
    """How the replicas of a model are, by name (None: it is not up), how many requests have gone from one to another,
    and of the pages of prompts how many the chosen replica had.
    """

    replicas: dict[str, EngineState | None]
    moved: int
    prefix_hits: int
    prefix_queries: int
