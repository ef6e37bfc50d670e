"""Queries of the page about a model, by the last part of their path. They run in this process or on a replica."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from msgspec import Meta

from pellucid.engine.task import ReadingTask
from pellucid.llm import LLM
from pellucid.measure.profile import profile_turns
from pellucid.plan.points import Point
from pellucid.sample.step import steps
from pellucid.serve.look import explanations as explain
from pellucid.serve.look.weight_rows import WeightsFields, weights
from pellucid.serve.request_body import BodyType, Count, F, Fields, ModelFields, RequestBody
from pellucid.serve.served_model import ServedModel
from pellucid.trace.recorded_run import shape_of
from pellucid.util.checks import whole
from pellucid.weights.checkpoint import parameter_count, stored_bytes

# Facts about a model that the page needs: its structure, its state, the times of a step.


class FactsFields(Fields, frozen=True):
    """Fields of a query for facts: the name of the model."""

    name: str


def model_facts(body: RequestBody[FactsFields], llm: LLM) -> dict[str, Any]:
    """A model's shape, its hook points and its sampler steps. ``notice``: why its values cannot be traced.

    ``blocks`` and ``facts`` are sizes of the blocks and of the model (``model/describe.py``), with the number of
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
        "dictionaries": {name: explain.described(one) for name, one in llm.dictionaries.items()},
        "vectors": {name: sorted(one.directions) for name, one in llm.vectors.vectors.items()},
        "probes": {
            name: {"point": one.point, "guard": llm.vectors.guards.get(name)}
            for name, one in llm.vectors.probes.items()
        },
        "notice": llm.unwatched,
        "points": {
            one.name: {"shape": one.shape, "dtype": one.dtype, "unit": one.unit, "about": one.about, "kind": one.kind}
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


# GET /look/state/NAME and POST /look/profile: state of a running model, and the times of a step's operations.

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


# Queries of the page about a model, by the last part of their path. They run in this process or on a replica.


@dataclass(frozen=True)
class ModelQuery:
    """A query: its ``summary``, its ``body``, and the function that computes the response in a thread."""

    summary: str
    body: BodyType[Any]
    run: Callable[[RequestBody[Any], LLM], dict[str, Any]]


def _query(summary: str, fields: type[F], run: Callable[[RequestBody[F], LLM], dict[str, Any]]) -> ModelQuery:
    return ModelQuery(summary, BodyType(fields), run)


QUERIES: Mapping[str, ModelQuery] = {
    "models": _query("The shape of a model, and its hook points.", FactsFields, model_facts),
    "lens": _query("Predictions after each block (logit lens).", explain.LensFields, explain.lens),
    "features": _query(
        "The active features of a dictionary at each token of a prompt.",
        explain.FeaturesFields,
        explain.active_features,
    ),
    "beams": _query("A beam search, with the tree of all candidates.", explain.BeamsFields, explain.beams),
    "profile": _query("The times of a step's operations beside the limits of the machine.", ProfileFields, profile),
    "attribution": _query(
        "Contribution of each part to the logit of a token.", explain.AttributionFields, explain.attribution
    ),
    "graph": _query(
        "Attribution graph of the next token, in Neuronpedia's format.", explain.GraphFields, explain.graph
    ),
    "neighbours": _query("The nearest tokens of token ids or words.", explain.NeighboursFields, explain.neighbours),
    "weights": _query(
        "The weights of one number of a point, and the input that they multiply.", WeightsFields, weights
    ),
    "pieces": _query("The texts of tokens.", explain.PiecesFields, explain.pieces),
    "tokenize": _query("Tokenization of a text, stage by stage.", explain.TextTokenizeFields, explain.tokenization),
}
"""``TraceReading`` is not a query, because it is cancelled when its client disconnects."""
