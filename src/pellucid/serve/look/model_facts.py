"""GET /look/models/NAME: facts about a model that the page needs."""

from __future__ import annotations

from typing import Any

from pellucid.llm import LLM
from pellucid.sample.step import steps
from pellucid.serve.request_body import Fields, RequestBody
from pellucid.trace.recorded_run import shape_of
from pellucid.weights.checkpoint import parameter_count, stored_bytes


class FactsFields(Fields, frozen=True):
    """Fields of a query for facts: the name of the model."""

    name: str


def model_facts(body: RequestBody[FactsFields], llm: LLM) -> dict[str, Any]:
    """A model's shape, its hook points and its sampler steps. ``notice``: why its values cannot be traced.

    ``blocks`` and ``facts`` are sizes of the blocks and of the model (``model/block_sizes.py``), with the number of
    ``parameters`` and their ``bytes`` in the file. ``graph`` is the dataflow between the points (``plan/dataflow.py``).
    """
    name, spec, points = body.fields.name, llm.spec, {} if llm.unwatched else llm.points
    shape = shape_of(spec, llm.plan, llm.inputs.vocabulary)
    return {
        "name": name,
        "model": spec.name,
        "family": spec.family,
        "generates": spec.generates,
        "task": spec.task,
        "chat": llm.tokenizer.chat_template is not None,
        "context": llm.context,
        "vocabulary": llm.inputs.vocabulary,
        "width": spec.embedding.width,
        "threads": llm.runner.threads,
        "position": shape["position"],
        "slopes": shape["slopes"],
        "angles": shape["angles"],
        "blocks": shape["blocks"],
        "facts": {
            **shape["facts"],
            "parameters": parameter_count(llm.checkpoint),
            "bytes": stored_bytes(llm.checkpoint),
        },
        "graph": shape["graph"],
        "recommended": llm.recommended,
        "steps": list(steps()),
        "notice": llm.unwatched,
        "points": {
            one.name: {
                "shape": one.shape,
                "dtype": one.dtype,
                "unit": one.unit,
                "about": one.about,
                "kind": one.kind,
            }
            for one in points.values()
        },
    }
