"""Gradients of a target, and the attributions that they give: the backward pass over a plan's operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from msgspec.structs import replace as struct_replace
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, brief
from pellucid.plan.plan import Operation
from pellucid.plan.points import Point, View
from pellucid.trace.backward.products import product_of
from pellucid.trace.backward.reverse_walk import (
    Adjoints,
    ReverseWalk,
    Rows,
    Tape,
    Values,
    Version,
    Versions,
    refuse_too_long,
    tape_bytes,
    version_of,
)
from pellucid.trace.edits import Edit, replace
from pellucid.trace.export import Exportable, LabelledArray, json_fields, token_axis
from pellucid.trace.lenses.patching import LAST_LOGITS, clean_values
from pellucid.trace.lenses.targets import Sweep, Target, gradient_of, refuse_no_gradient
from pellucid.trace.selection import select
from pellucid.trace.traced_model import ModelWeights, TracedModel, read
from pellucid.util.checks import whole
from pellucid.util.display import heat

# The backward pass: the vector-Jacobian products of a plan's operations, in reverse order.
#
# A value is a version of a buffer: the plan overwrites its buffers (``Versions``). The rows of several sequences are
# computed together, so that each matrix is read once.

OF_PATTERNS = ("pattern", "scores")


class BackwardPass:
    """The backward pass of a plan, with the ``versions`` of its buffers, to some ``points``.

    It begins at the output of the plan, or at the value of the point ``start``. Raises InvalidRequest if an operation
    after the first point has no product, or a point has no gradient.
    """

    def __init__(self, versions: Versions, points: Sequence[Point], start: Point | None = None) -> None:
        plan = versions.plan
        self.versions, self.plan, self.points = versions, plan, list(points)
        for point in points:
            if point.kind not in ("value", *OF_PATTERNS) or point.dtype != "float32":
                raise InvalidRequest(f"point={point.name}: it has no gradient: choose a value, a pattern or scores")
        self.recorded = {point.name: version_of(point, versions) for point in points if point.kind == "value"}
        """The versions of the points, which a tape records too."""
        first = min((point.operation for point in points), default=len(plan.operations))
        if start is None:
            last = max(n for n, op in enumerate(plan.operations) if plan.output in op.writes)
            self._last = Version(plan.output, last)
        else:
            self._last = version_of(start, versions)
        patterns = [point.operation for point in points if point.kind in OF_PATTERNS]
        self._walk = ReverseWalk(versions, [self._last], first, product_of, kept=patterns)
        self.needs = self._walk.needs(self.recorded.values())

    def run(
        self, tapes: Sequence[Tape], seeds: NDArray[np.float32], weights: ModelWeights
    ) -> list[dict[str, NDArray[np.float32]]]:
        """The gradients of each point in each sequence, for the gradients ``seeds`` of the start.

        ``seeds`` (R, V) has a row for each output of all sequences, or (T, D) for each of their tokens if the pass
        begins at a point. A point's gradient has the shape of its value.
        """
        ends = np.cumsum([tape.rows["tokens"] for tape in tapes]).tolist()
        sequences = [slice(end - tape.rows["tokens"], end) for end, tape in zip(ends, tapes)]
        picked = np.concatenate(
            [np.arange(own.start + tape.first_output, own.stop) for own, tape in zip(sequences, tapes)]
        )
        count = len(picked) if self.versions.rows(self._last) == "outputs" else ends[-1]
        seed = np.zeros((count, self.versions.width(self._last)), np.float32)
        seed[:, : seeds.shape[1]] = seeds
        adjoints, found = Adjoints(self.versions), [dict[str, NDArray[np.float32]]() for _ in tapes]
        adjoints.add(self._last, seed)
        shared = Values(self.plan, weights, {}, sequences, picked, angles={})

        def taken(number: int, op: Operation) -> dict[str, Rows]:
            each = {name: adjoints.take(Version(name, number)) for name in op.writes}
            own = {name: gradient for name, gradient in each.items() if gradient is not None}
            for point in self.points:
                gradient = own.get(op.writes[point.write]) if point.operation == number else None
                if point.kind == "value" and gradient is not None:
                    self._collect(point, gradient, sequences, tapes, found)
            return own

        def of_pattern(number: int, name: str, gradient: Rows) -> None:
            kind, _, sequence = name.partition(".")
            for point in self.points:
                if sequence and point.operation == number and point.kind == kind:
                    found[int(sequence)][point.name] = gradient

        def values(number: int, own: Mapping[str, Rows]) -> Values:
            patterns = [tape.pattern(number) for tape in tapes] if number in self.needs.patterns else []
            scores = [tape.pattern(number, raw=True) for tape in tapes] if number in self.needs.scores else []
            recorded = self._walk.recorded(number, tapes)
            made: Values = struct_replace(shared, values=recorded, patterns=patterns, scores=scores, gradients=own)
            return made

        self._walk.run(adjoints, self._last.writer, taken, values, of_pattern)
        return found

    def values_of(self, tape: Tape) -> dict[str, NDArray[np.float32]]:
        points = {point.name: point for point in self.points}
        return {
            name: viewed(tape.value(version), points[name].view, heads=points[name].heads > 0)
            for name, version in self.recorded.items()
        }

    def _collect(
        self,
        point: Point,
        gradient: Rows,
        sequences: Sequence[slice],
        tapes: Sequence[Tape],
        found: list[dict[str, NDArray[np.float32]]],
    ) -> None:
        first = 0
        for own, tape, gradients in zip(sequences, tapes, found):
            rows = own
            if point.rows == "outputs":
                rows = slice(first, first + tape.rows["outputs"])
                first = rows.stop
            gradients[point.name] = viewed(gradient[rows], point.view, heads=point.heads > 0)


def viewed(rows: Rows, view: View, *, heads: bool) -> NDArray[np.float32]:
    """The values of a view in rows of a buffer: (n, parts, count), or without ``heads`` (n, count)."""
    spaced = np.zeros((len(rows), view.parts * view.stride), np.float32)
    count = min(spaced.shape[1], rows.shape[1])
    spaced[:, :count] = rows[:, :count]
    values = spaced.reshape(len(rows), view.parts, view.stride)[:, :, : view.count]
    return np.ascontiguousarray(values if heads else values.reshape(len(rows), -1))


# Gradients of a target, and the attributions that they give.
#
#     gradients(llm, prompt, target, ["blocks.*.residual"])
#     attribution_patch(llm, clean, corrupted, target)      (Nanda 2023; Syed et al. 2023, arXiv:2310.10348)
#     integrated_gradients(llm, prompt, target)             (Sundararajan et al. 2017, arXiv:1703.01365)
#
# A target must have a ``gradient``, as the targets of ``trace/lenses/targets.py`` have.

BUDGET = 4 << 30  # default limit of the bytes of recorded values


@dataclass(frozen=True, repr=False)
class Gradients:
    """The gradients of a target by the values of a run: ``gradients["blocks.3.residual"]`` has the value's shape.

    Values after the last block are computed for the last token alone, and have one row.

    ``value`` is the target after the prompt's last token, and ``logits`` (V,) are the logits there. ``pieces`` are the
    texts of the prompt's tokens. ``values`` has the values of the points in the same run; patterns and scores are left
    out.
    """

    value: float
    logits: NDArray[np.float32]
    pieces: list[str]
    points: Mapping[str, NDArray[np.float32]]
    values: Mapping[str, NDArray[np.float32]]

    def __repr__(self) -> str:
        return f"Gradients({self.value:.3f}, {len(self.points):,} points, {len(self.pieces):,} tokens)"

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """The gradient by a point. Raises InvalidRequest for a point without a gradient."""
        if name not in self.points:
            some = ", ".join(list(self.points)[:5])
            raise InvalidRequest(f"point={brief(name)}: there is no gradient of it; there are {some} ...")
        return self.points[name]


def gradients(
    model: TracedModel,
    prompts: Any,
    target: Target | Sequence[Target],
    points: Sequence[str],
    *,
    edits: Sequence[Edit] = (),
    budget: int = BUDGET,
) -> Any:
    """The gradients of a target after a prompt's last token by the values of ``points``.

    Args:
        prompts: a prompt, or a list of prompts, whose backward passes run together: then the result is a list.
        target: a target with a gradient, or a list with the target of each prompt.
        points: names of points as in ``trace``, without brackets. Patterns and scores have gradients too.
        edits: edits of the run. A gradient passes through an edited value as if it were computed.
        budget: limit of the bytes of recorded values.

    Raises:
        InvalidRequest: a point has no gradient, an operation has no vector-Jacobian product, the target has no
            gradient, or the values do not fit into the budget.
    """
    several = isinstance(prompts, (list, tuple)) and bool(prompts) and isinstance(prompts[0], (str, list, tuple))
    texts = list(prompts) if several else [prompts]
    targets: list[Target] = list(target) if isinstance(target, (list, tuple)) else [cast(Target, target)] * len(texts)
    if len(targets) != len(texts):
        raise InvalidRequest(f"target: {len(targets):,} targets for {len(texts):,} prompts: give one for each")
    for one in targets:
        refuse_no_gradient(one, "an object with the method gradient(logits)")
    selected = select(model.points, list(points))
    if any(part.point.of_source or part.dims is not None or not part.has_all_heads for part in selected):
        raise InvalidRequest("points: gradients have all heads and dims: leave brackets out")
    backward = BackwardPass(model.plan_versions, [part.point for part in selected])
    prompts_ids = [model.inputs.prompt(text) for text in texts]
    needed = sum(tape_bytes(backward.versions, backward.needs, len(ids), 1) for ids in prompts_ids)
    refuse_too_long(needed, whole("budget", budget, 1, 1 << 50), sum(map(len, prompts_ids)))
    runs = [model.taped(ids, backward.versions, backward.needs, edits) for ids in prompts_ids]
    seeds = np.stack([gradient_of(one, logits, np.float32) for one, (_, logits) in zip(targets, runs)])
    found = backward.run([tape for tape, _ in runs], seeds, model.float_weights)
    made = [
        Gradients(
            float(one(logits)),
            logits,
            [model.tokenizer.piece(token) for token in ids],
            {part.name: own[part.name] for part in selected if part.name in own},
            backward.values_of(tape),
        )
        for one, (tape, logits), ids, own in zip(targets, runs, prompts_ids, found)
    ]
    return made if several else made[0]


def attribution_patch(
    model: TracedModel,
    clean: Any,
    corrupted: Any,
    target: Target,
    *,
    kind: str = "residual",
    by: Literal["token", "head"] = "token",
    budget: int = BUDGET,
) -> Sweep:
    """The effects of ``patch_sweep`` to first order, from two runs and one backward pass.

    The effect of a value is the inner product of its change, clean minus corrupted, with the gradient of the corrupted
    run. Arguments, the scale of the effects and errors are as in ``patch_sweep`` and ``gradients``.
    """
    names, source, _ = clean_values(model, clean, corrupted, kind, by)
    own = gradients(model, corrupted, target, list(names.values()), budget=budget)
    rows = []
    for name in names.values():
        change = source[name].astype(np.float64) - own.values[name]
        products = change * own[name]
        rows.append(products.sum(tuple(range(1, products.ndim))) if by == "token" else products.sum((0, 2)))
    columns = max(map(len, rows))
    values = np.full((len(rows), columns), np.nan)
    for row, effects in zip(values, rows):
        row[: len(effects)] = effects
    axes = {"layer": list(names), by: list(range(columns))}
    found = Sweep(own.value + values, axes, own.value, source.pieces)
    return found.scaled(own.value, float(target(source["project.logits"][-1])))


@dataclass(frozen=True, repr=False)
class TokenAttribution(Exportable):
    """The contributions of a prompt's tokens to a target, ``values`` (T,).

    They sum to the difference of the target between the prompt (``value``) and the baseline (``baseline``), except for
    ``rest``, the error of the integral.
    """

    pieces: list[str]
    values: NDArray[np.float64]
    value: float
    baseline: float

    @property
    def rest(self) -> float:
        """The difference that the values do not explain."""
        return self.value - self.baseline - float(self.values.sum())

    def __repr__(self) -> str:
        most = np.argsort(-np.abs(self.values), kind="stable")[:3]
        each = ", ".join(f"{self.pieces[at]!r} {self.values[at]:+.3f}" for at in most)
        return f"TokenAttribution({self.value - self.baseline:+.3f}, most by {each})"

    def _values(self) -> list[LabelledArray]:
        return [LabelledArray("attribution", self.values, (token_axis(self.pieces),))]

    def _repr_html_(self) -> str:
        return heat(self.values[None], [""], self.pieces, "contribution by token")

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dictionary for JSON."""
        return json_fields(self, "pieces", "values", "value", "baseline")


def integrated_gradients(
    model: TracedModel,
    prompt: Any,
    target: Target,
    *,
    baseline: NDArray[np.float32] | None = None,
    steps: int = 16,
    budget: int = BUDGET,
) -> TokenAttribution:
    """The contributions of the tokens' embeddings: gradients along the line from ``baseline`` to the prompt.

    Args:
        baseline: embeddings (D,) or (T, D); zeros by default.
        steps: the number of points on the line (midpoints of equal parts).

    Raises: as ``gradients``.
    """
    steps = whole("steps", steps, 1, 10_000)
    x = read(model, prompt, ["embed"])["embed"]
    start = np.zeros_like(x) if baseline is None else np.broadcast_to(np.asarray(baseline, np.float32), x.shape)
    total = np.zeros(x.shape)
    for number in range(steps):
        at = start + np.float32((number + 0.5) / steps) * (x - start)
        total += gradients(model, prompt, target, ["embed"], edits=[replace("embed", at)], budget=budget)["embed"]
    values = ((x - start) * total / steps).sum(-1)
    whole_run, first = (
        read(model, prompt, [LAST_LOGITS], edits)["project.logits"][-1] for edits in ((), [replace("embed", start)])
    )
    pieces = [model.tokenizer.piece(token) for token in model.inputs.prompt(prompt)]
    return TokenAttribution(pieces, values, float(target(whole_run)), float(target(first)))
