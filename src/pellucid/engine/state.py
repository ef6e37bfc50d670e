"""Snapshots of an engine's state, for monitoring and for the router."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class EngineState:
    """Metrics of an engine.

    ``waiting`` counts requests before their first step, and ``running`` requests after it. ``steps`` and
    ``step_seconds`` are the number of steps so far and their total time. ``preemptions`` counts how often a request
    lost its pages to another request. ``pages`` is the cache's number of pages. ``prefix_cache_bytes`` is the memory
    of the pages in the prefix cache. For a model on several machines, ``stage_seconds`` is the part of ``step_seconds``
    that each pipeline stage has taken.
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
    """States of a model's replicas by name (None: the replica is down), and counters of the router.

    ``moved`` counts requests that moved to another replica. ``prefix_queries`` counts whole pages of routed prompts.
    ``prefix_hits`` counts the pages of these prompts that the chosen replica already had.
    """

    replicas: dict[str, EngineState | None]
    moved: int
    prefix_hits: int
    prefix_queries: int
