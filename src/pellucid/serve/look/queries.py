"""Queries of the page about a model, by the last part of their path. They run in this process or on a replica."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from msgspec import Meta

from pellucid.base_llm import BaseLLM
from pellucid.engine.task import ReadingTask
from pellucid.errors import InvalidRequest, brief
from pellucid.kernels.core.record import StepRecord
from pellucid.llm import LLM
from pellucid.measure.roofs import profile_turns
from pellucid.plan.dataflow import PointSource, point_sources
from pellucid.plan.plan import Operation, Plan, Vector, Weights
from pellucid.plan.points import Point
from pellucid.sample.step import steps
from pellucid.serve.api import array_body
from pellucid.serve.look import explanations as explain
from pellucid.serve.look import finding
from pellucid.serve.request_body import BodyType, Count, F, Fields, ModelFields, RequestBody, TokenId
from pellucid.trace.recorded_run import shape_of
from pellucid.trace.selection import select
from pellucid.trace.traced_model import ModelWeights
from pellucid.util.checks import whole
from pellucid.weights.checkpoint import parameter_count, stored_bytes

# POST /look/weights: the weights of one number of a point, and the input that they multiply.

PRODUCTS = ("matmul", "matmul_heads", "matmul_experts")
"""The kernels of matrix products, without "_float" and "_int8"."""
CHANGES = {"scale": "factor", "softcap": "cap", "activation": ""}
"""The kernels that change a product in place, and the field of their number ("": an activation has none)."""


class WeightsFields(ModelFields, frozen=True, kw_only=True):
    """Fields of /look/weights. ``index`` is the number of a component of the point, over all heads or choices.

    ``expert`` is the expert that computed it. ``row`` is the row of an embedding: a token id, or a position.
    """

    point: str
    index: Annotated[int, Meta(ge=0)]
    expert: TokenId | None = None
    row: TokenId | None = None


def weights(body: RequestBody[WeightsFields], llm: LLM) -> dict[str, Any]:
    """The weights of component ``index`` of ``point``.

    ``kind`` is "linear": value = weights · input[columns] + bias, then each change of ``then`` (a factor, a soft-cap,
    the activation of an output layer), with the weights (J,) dequantised; "norm": value = weights * normalised
    input[columns] + bias, with a single weight; "embedding": value = factor * weights, with a single weight of the
    table's ``row``, added to the ``input`` if there is one. ``bias`` is null if there is none. ``columns`` are the
    first component of the input and the end.
    """
    fields, point = body.fields, _point(llm, body.fields.point)
    optimized = (point.of_source and llm.plan.encoder) or llm.plan
    plan = optimized.source or optimized
    source = point_sources(optimized)[0].get(point.name)
    op = next((op for op in plan.operations if source and op.stage == source.stage), None)
    name = op.kernel.name if op else ""
    for suffix in ("_float", "_int8", "_rows"):
        name = name.removesuffix(suffix)
    if source is None or op is None or name not in (*PRODUCTS, "norm", "embedding"):
        inputs = _listed(source.inputs) if source else "the logits"
        raise InvalidRequest(f"point={brief(point.name)}: it is no product of weights, but computed from {inputs}")
    for field in ("expert", "row"):
        if getattr(fields, field) is not None and field != {"matmul_experts": "expert", "embedding": "row"}.get(name):
            raise InvalidRequest(f"{field}={getattr(fields, field)}: {point.name} has none: leave it out")
    row = _ComponentWeights(llm, plan, op, point, source, whole("index", fields.index, 0, _size(point) - 1))
    if name == "norm":
        return row.norm()
    return row.embedding(fields.row) if name == "embedding" else row.linear(name, fields.expert)


def _point(llm: LLM, name: str) -> Point:
    parts = select(llm.points, [name])
    if len(parts) != 1 or "[" in name:
        raise InvalidRequest(f"point={brief(name)}: must be one whole point, such as blocks.0.attention.q")
    return parts[0].point


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(names) or "the tokens"


def _size(point: Point) -> int:
    """The number of components of a value of a point."""
    return point.view.parts * point.view.count


class _ComponentWeights:
    """The weights of component ``index`` of a point, which ``op`` computes."""

    def __init__(self, llm: LLM, plan: Plan, op: Operation, point: Point, source: PointSource, index: int) -> None:
        self._llm, self._plan, self._op, self._point = llm, plan, op, point
        self._source, self._index = source, index
        self._weights = ModelWeights(llm.checkpoint, llm.model)

    @property
    def _input(self) -> str:
        """The first input. The others say which expert, or which position."""
        return self._source.inputs[0]

    def _check_input(self, size: int) -> None:
        """Refuse an operation that reads only a part of its input, or parts of several."""
        several = len(self._source.inputs) > 1 and not self._op.kernel.name.startswith("matmul_experts")
        if several or _size(self._llm.points[self._input]) != size:
            raise InvalidRequest(
                f"point={brief(self._point.name)}: it is computed from a part of {_listed(self._source.inputs)}, which "
                "is no point of its own"
            )

    def linear(self, name: str, expert: int | None) -> dict[str, Any]:
        """A matrix product."""
        row, count = self._index, self._point.view.count
        part, component = divmod(row, count)
        if name == "matmul_experts":
            if expert is None:
                raise InvalidRequest(
                    f"expert is missing: {self._point.name} is computed by the chosen experts of a token"
                )
            row = whole("expert", expert, 0, int(self._op.fields["experts"]) - 1) * count + component  # type: ignore[arg-type]
        values = self._weights.row(self._slot, row)
        own = name == "matmul_heads" or (name == "matmul_experts" and not self._op.kernel["gathered"])
        width = len(values)
        first = part * width if own else 0
        self._check_input(width * self._llm.points[self._input].view.parts if own else width)
        addend = self._op.fields.get("addend")
        bias = self._weights.values(addend.slot).reshape(-1)[row] if isinstance(addend, Vector) else None
        return {
            "kind": "linear",
            "input": self._input,
            "columns": [first, first + width],
            "weights": array_body(values),
            "bias": None if bias is None else float(bias),
            "then": list(self._changes()),
        }

    @property
    def _slot(self) -> str:
        fields = self._op.fields
        matrix = fields["table"] if "table" in fields else fields["weights"]
        assert isinstance(matrix, (Weights, Vector))
        return matrix.slot

    def _changes(self) -> Iterator[dict[str, Any]]:
        """The operations between the product and the point: a factor, a soft-cap, the function of an output layer."""
        operations = self._plan.operations
        first = next(at for at, op in enumerate(operations) if op is self._op)
        for op in operations[first + 1 : self._point.operation + 1]:
            if (field := CHANGES.get(op.kernel.name)) is not None:
                change = {field: op.fields[field]} if field else {"kind": op.kernel["kind"]}
                yield {"kernel": op.kernel.name, **change}

    def norm(self) -> dict[str, Any]:
        """A norm of a row, or of each head of a row."""
        fields, count = self._op.fields, int(self._op.fields["count"])  # type: ignore[arg-type]
        part, component = divmod(self._index, count)
        self._check_input(int(fields["parts"]) * count)  # type: ignore[arg-type]
        at = component + (part * count if fields["weight_part"] else 0)
        weight, bias = (
            float(self._weights.values(vector.slot).reshape(-1)[at]) if isinstance(vector, Vector) else None
            for vector in (fields["weight"], fields["bias"])
        )
        return {
            "kind": "norm",
            "norm": self._op.kernel["kind"],
            "epsilon": fields["eps"],
            "input": self._input,
            "columns": [part * count, part * count + count],
            "weights": getattr(fields["weight"], "number", 1.0) if weight is None else weight,
            "bias": bias,
        }

    def embedding(self, row: int | None) -> dict[str, Any]:
        """A row of a table, which may be added to the input."""
        fields = self._op.fields
        if row is None:
            if fields["index"] != StepRecord.at.token_types:
                raise InvalidRequest(f"row is missing: {self._point.name} is a row of a table: a token id or position")
            row = 0  # a text alone has tokens of type 0
        limit = int(fields["limit"])  # type: ignore[arg-type]
        rows = self._weights.row(self._slot, 0 if limit and row >= limit else row)
        return {
            "kind": "embedding",
            "input": self._input if self._source.inputs else None,
            "weights": float(rows[self._index]),
            "factor": fields["factor"],
            "bias": None,
        }


# Queries of the page about a model, by the last part of their path. They run in this process or on a replica.


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


def state(llm: BaseLLM[Any]) -> dict[str, Any]:
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
    "causes": _query("The tokens, heads and neurons that make a token lead.", finding.CausesFields, finding.why),
    "raised": _query("The tokens that parts such as neurons raise.", finding.RaisedFields, finding.raised),
    "heads": _query("Heads that read specifically at a position.", finding.HeadsFields, finding.reading_heads),
    "place": _query("Where a picture of a prompt should look.", finding.PlaceFields, finding.place),
    "report": _query("One step of a text as a page that opens without a server.", explain.ReportFields, explain.report),
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
