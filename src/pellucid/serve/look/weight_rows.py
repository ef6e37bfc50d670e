"""POST /look/weights: the weights of one number of a point, and the input that they multiply."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from msgspec import Meta

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.kernels.core.record import StepRecord
from pellucid.llm import LLM
from pellucid.plan.dataflow import PointSource, point_sources
from pellucid.plan.plan import Operation, Plan, Vector, Weights
from pellucid.plan.points import Point
from pellucid.serve.api import array_body
from pellucid.serve.request_body import ModelFields, RequestBody, TokenId
from pellucid.trace.selection import select
from pellucid.trace.traced_model import ModelWeights
from pellucid.util.checks import whole

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
