"""GET /look/models/NAME: facts about a model that the page needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pellucid.llm import LLM
from pellucid.plan.points import Point
from pellucid.sample.step import steps
from pellucid.serve.look.active_features import described
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
    ``encoder`` has the sizes of the blocks of an encoder-decoder's encoder.

    ``output`` is the point of an encoder's outputs: one row for a text, or a row for ``each`` token. ``labels`` are the
    names of its columns (None: they have no names), and ``scale`` makes scores of them (``model/outputs.py``).
    ``dictionaries`` are the dictionaries of features that requests may name. ``vectors`` are the registered control
    vectors with their layers, and ``probes`` the registered probes, with the limit of a guard.
    """
    name, spec, points = body.fields.name, llm.spec, {} if llm.unwatched else llm.points
    shape = shape_of(spec, llm.plan, llm.inputs.vocabulary)
    return {
        "name": name,
        "model": spec.name,
        "family": spec.family,
        "generates": spec.generates,
        "task": spec.task,
        "output": _output(llm, points),
        "chat": llm.tokenizer.chat_template is not None,
        "context": llm.context,
        "vocabulary": llm.inputs.vocabulary,
        "width": spec.embedding.width,
        "threads": llm.runner.threads,
        "position": shape["position"],
        "slopes": shape["slopes"],
        "angles": shape["angles"],
        "blocks": shape["blocks"],
        "encoder": shape["encoder"],
        "facts": {
            **shape["facts"],
            "parameters": parameter_count(llm.checkpoint),
            "bytes": stored_bytes(llm.checkpoint),
        },
        "graph": shape["graph"],
        "recommended": llm.recommended,
        "steps": list(steps()),
        "dictionaries": {name: described(one) for name, one in llm.dictionaries.items()},
        "vectors": {name: sorted(one.directions) for name, one in llm.vectors.vectors.items()},
        "probes": {
            name: {"point": one.point, "guard": llm.vectors.guards.get(name)}
            for name, one in llm.vectors.probes.items()
        },
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


def _output(llm: LLM, points: Mapping[str, Point]) -> dict[str, Any] | None:
    """The point of an encoder's outputs, with the names of its columns."""
    spec = llm.spec
    names = [name for name, point in points.items() if point.kind == "value"]
    if spec.generates or not names:
        return None
    labels, scale = (list(spec.labels.names), spec.labels.scale) if spec.labels else (None, "none")
    if spec.task == "answer":
        labels, scale = ["an answer begins", "an answer ends"], "none"
    return {"point": names[-1], "each": spec.pooling is None, "labels": labels, "scale": scale}
