"""GET /look/state/NAME and POST /look/profile: state of a running model, and the times of a step's operations."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pellucid.engine.reading import ReadingTask
from pellucid.llm import LLM
from pellucid.measure.profile import profile_turns
from pellucid.serve.body import Body
from pellucid.serve.look.fields import no_more
from pellucid.serve.model import ServedModel

ROUNDS, MOST_DEPTH = 3, 1024
ROOF_BYTES = 64 << 20  # larger than most CPU caches, small beside a model


def state(llm: ServedModel) -> dict[str, Any]:
    """Requests, steps, pages of the cache, and bytes of the prefix cache."""
    return asdict(llm.state())


def profile(body: Body, llm: LLM) -> dict[str, Any]:
    """Times of the operations of a step with ``tokens`` after ``depth`` tokens, measured between steps of requests.

    Raises:
        InvalidRequest: a field is out of range, or the model is closed.
        CacheFull: the cache has no pages for the step.
    """
    tokens = body.count("tokens", 1, min(llm.runner.limits.tokens, llm.context - 1)) or 1
    depth = body.count("depth", 0, min(MOST_DEPTH, llm.context - 1 - tokens)) or 0
    no_more(body, "a profile has tokens and depth")
    turns = profile_turns(llm.runner, tokens, depth, ROUNDS, roof_bytes=ROOF_BYTES)
    *_, found = llm.engine.run(ReadingTask(turns), llm.scheduling)
    assert found is not None
    kinds = sorted(found.kinds().items(), key=lambda one: -one[1].seconds)
    return {
        "what": found.what,
        "seconds": found.total.seconds,
        "read_bytes_per_second": found.rates.read,
        "multiply_adds_per_second": found.rates.multiply,
        "operations": [
            {
                "stage": stage,
                "kernel": kernel,
                "count": timed.count,
                "seconds": timed.seconds,
                "rate": timed.rate(found.rates),
                "share": timed.share(found.rates),
            }
            for (stage, kernel), timed in kinds
        ],
    }
