"""GET /look/models/NAME/state: how a model runs right now."""

from __future__ import annotations

from typing import Any

from pellucid.llm import LLM


def state(llm: LLM) -> dict[str, Any]:
    """Requests, steps, pages of the cache, and what the prefix cache has."""
    runner, engine = llm.runner, llm.engine
    return {
        "running": engine.running,
        "waiting": engine.waiting,
        "steps": engine.steps,
        "step_seconds": engine.step_seconds,
        "preemptions": engine.preemptions,
        "pages": runner.cache.pages,
        "pages_in_use": engine.pages_in_use,
        "prefix_cache_bytes": runner.prefix_bytes,
        "threads": runner.threads,
    }
