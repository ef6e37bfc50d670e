"""GET /look/state/NAME and POST /look/profile: state of a running model, and the times of a step's operations."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from msgspec import Meta

from pellucid.engine.reading import ReadingTask
from pellucid.llm import LLM
from pellucid.measure.profile import profile_turns
from pellucid.serve.request_body import Count, ModelFields, RequestBody
from pellucid.serve.served_model import ServedModel
from pellucid.util.checks import whole

ROUNDS, MOST_DEPTH = 3, 1024
ROOF_BYTES = 64 << 20  # larger than most CPU caches, small beside a model


def state(llm: ServedModel) -> dict[str, Any]:
    """Requests, steps, pages of the cache, and bytes of the prefix cache. ``replicas``: the same of each replica."""
    replicas = llm.replica_states()
    own = {} if replicas is None else {"replicas": asdict(replicas)["replicas"]}
    return {**asdict(llm.state()), **own}


class ProfileFields(ModelFields, frozen=True, kw_only=True):
    """Fields of /look/profile."""

    tokens: Count = 1
    depth: Annotated[int, Meta(ge=0)] = 0


def profile(body: RequestBody[ProfileFields], llm: LLM) -> dict[str, Any]:
    """Measure the operations of a step with ``tokens`` tokens after ``depth`` tokens, between the steps of requests.

    Raises:
        InvalidRequest: a field is out of range, or the model is closed.
        CacheFull: the cache has no pages for the step.
    """
    most = min(llm.runner.limits.tokens, llm.context - 1)
    tokens = whole("tokens", body.fields.tokens, 1, most)
    depth = whole("depth", body.fields.depth, 0, min(MOST_DEPTH, llm.context - 1 - tokens))
    turns = profile_turns(llm.runner, tokens, depth, ROUNDS, roof_bytes=ROOF_BYTES)
    *_, profiled = llm.engine.run(ReadingTask(turns), llm.scheduling)
    assert profiled is not None
    kinds = sorted(profiled.kinds().items(), key=lambda one: -one[1].seconds)
    return {
        "what": profiled.what,
        "seconds": profiled.total.seconds,
        "repetitions": profiled.repetitions,
        "read_bytes_per_second": profiled.rates.read,
        "multiply_adds_per_second": profiled.rates.multiply,
        "operations": [
            {
                "stage": stage,
                "kernel": kernel,
                "count": timed.count,
                "seconds": timed.seconds,
                "rate": timed.rate(profiled.rates),
                "share": timed.share(profiled.rates),
            }
            for (stage, kernel), timed in kinds
        ],
    }
