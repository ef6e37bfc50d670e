"""Targets (functions of the logits after the last token), and sweeps: a target for each of many edited prompts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, brief, shown
from pellucid.kernels.ops.elementwise import activation_reference as activation
from pellucid.kernels.ops.norm import reference as normalized
from pellucid.model.outputs import Dense, UnitLength
from pellucid.model.spec import Norm
from pellucid.sample.candidates import Candidates
from pellucid.trace.edits import Edit
from pellucid.trace.export import Axis, Exportable, LabelledArray
from pellucid.trace.trace import SequenceTrace
from pellucid.trace.traced_model import (
    ModelWeights,
    OpenedModel,
    TracedModel,
    backward_of_norm,
    stream_points,
    token_of,
    unembedding,
)
from pellucid.util.display import heat

Logits = NDArray[np.float32]
Target = Callable[[Logits], float]


@dataclass(frozen=True)
class LogitDifference:
    """The logit of token ``first`` minus the logit of token ``second``."""

    first: int
    second: int

    def __call__(self, logits: Logits) -> float:
        return float(logits[self.first]) - float(logits[self.second])

    def gradient(self, logits: Logits) -> NDArray[np.float64]:
        """The derivatives by the logits (V,)."""
        found = np.zeros(len(logits))
        found[self.first] += 1
        found[self.second] -= 1
        return found


@dataclass(frozen=True)
class LogProbability:
    """The logarithm of the probability of ``token``; with ``raised`` the probability itself."""

    token: int
    raised: bool = False

    def __call__(self, logits: Logits) -> float:
        found = float(Candidates.of(logits, "target").log_probabilities(np.array([self.token]))[0])
        return math.exp(found) if self.raised else found

    def gradient(self, logits: Logits) -> NDArray[np.float64]:
        """The derivatives by the logits (V,)."""
        p = Candidates.of(logits, "target").probabilities()
        found = -p
        found[self.token] += 1
        return found * p[self.token] if self.raised else found


class DivergenceFrom:
    """The Kullback-Leibler divergence from the distribution of the logits ``reference`` (V,), in nats."""

    def __init__(self, reference: Logits) -> None:
        own = Candidates.of(np.asarray(reference, np.float32), "reference")
        self._p, self._log_p = own.probabilities(), own.log_probabilities()

    def __call__(self, logits: Logits) -> float:
        own, likely = self._checked(logits), self._p > 0
        difference = self._log_p - own.log_probabilities()
        return math.fsum((self._p[likely] * difference[likely]).tolist())

    def gradient(self, logits: Logits) -> NDArray[np.float64]:
        """The derivatives by the logits (V,)."""
        return self._checked(logits).probabilities() - self._p

    def _checked(self, logits: Logits) -> Candidates:
        if len(logits) != len(self._p):
            raise InvalidRequest(
                f"reference: {len(self._p):,} logits; this model has {len(logits):,}: give its own logits"
            )
        return Candidates.of(logits, "target")


def logit_difference(model: OpenedModel, token: int | str, against: int | str) -> LogitDifference:
    """The logit of ``token`` minus the logit of ``against``; each an id, or the text of a single token."""
    return LogitDifference(token_of(model, token), token_of(model, against))


def log_probability(model: OpenedModel, token: int | str) -> LogProbability:
    """The logarithm of the probability of ``token``."""
    return LogProbability(token_of(model, token))


def probability(model: OpenedModel, token: int | str) -> LogProbability:
    """The probability of ``token``."""
    return LogProbability(token_of(model, token), raised=True)


def divergence(reference: Logits) -> DivergenceFrom:
    """The Kullback-Leibler divergence from the distribution of the logits ``reference`` (V,), in nats."""
    return DivergenceFrom(reference)


def refuse_no_gradient(target: Any, instead: str) -> None:
    if not callable(getattr(target, "gradient", None)):
        raise InvalidRequest(
            f"target={brief(target)}: it has no gradient: use logit_difference, log_probability, probability or "
            f"divergence, or {instead}"
        )


def gradient_of(target: Any, logits: Logits, dtype: type[np.floating[Any]]) -> NDArray[Any]:
    """The gradient (V,) of a target. Raises InvalidRequest if it has another shape, or a value that is not finite."""
    found = np.asarray(target.gradient(logits), dtype)
    if found.shape != logits.shape or not np.isfinite(found).all():
        raise InvalidRequest(
            f"target={brief(target)}: its gradient must have {len(logits):,} finite numbers, not {found.shape}"
        )
    return found


# A logit, or a difference of two logits, as a linear function of the last vectors of the residual stream.
#
#     logit = Σ directions[position] · x[position] + constant + rounding
#
# The scale of each norm is held fixed, and so is the ratio of each value of an output layer after and before its
# activation. Then all operations after the last block are linear. Logits of tokens have a direction at one position.
# The scores of two options have a direction at the mark of each option.

Rows = NDArray[np.float64]
NEARLY_ONE = 1 - 2.0**-25


def through_norm(weights: ModelWeights, norm: Norm | None, slot: str, x: Rows, gradient: Rows) -> tuple[Rows, float]:
    """The gradient at the input ``x`` (..., D) of a norm with a fixed scale, and the contribution of its bias."""
    width, constant = x.shape[-1], 0.0
    if norm is not None and norm.has_bias:
        constant = float((gradient @ weights.vector(f"{slot}.bias", width, 0.0)).sum())
    return backward_of_norm(norm, weights.vector(f"{slot}.weight", width, 1.0), x, gradient), constant


class Readout(Struct, frozen=True):
    """The model's own ``logit`` before a soft-cap (or a difference of logits), and its linear form.

    ``directions`` has a vector (D,) for each position that is read. ``constant`` is the contribution of biases after
    the last block. ``stage`` is the name of the operations after the last block.
    """

    logit: float
    constant: float
    directions: Mapping[int, Rows]
    stage: str


def token_readout(
    model: TracedModel, sequence: SequenceTrace, logits: NDArray[np.float32], token: int, against: int | None, at: int
) -> Readout:
    """The readout of the logit of ``token`` after the position ``at``; with ``against``, of a difference of two logits.

    ``logits`` (V,) are the logits there. ``sequence`` needs the last residual stream at the position.
    """
    spec, weights = model.spec, ModelWeights(model.checkpoint, model.model)
    x = _last(model, sequence, at)
    row, logit = unembedding(spec, weights, token), float(uncapped(model, logits[[token]])[0])
    if against is not None:
        row = row - unembedding(spec, weights, against)
        logit -= float(uncapped(model, logits[[against]])[0])
    assert spec.head is not None
    constant = 0.0
    if spec.head.bias:
        bias = weights.values("project.bias").astype(np.float64) * spec.head.scale
        constant += float(bias[token] - (bias[against] if against is not None else 0.0))
    direction, of_norm = through_norm(weights, spec.final_norm, "norm", x, row)
    return Readout(logit, constant + of_norm, {at: direction}, "project")


def mark_readout(model: TracedModel, sequence: SequenceTrace, mark: int, against: int) -> Readout:
    """The readout of the score of the option at the position ``mark``, minus the score of the option at ``against``.

    ``sequence`` needs the last residual stream at both positions.
    """
    weights = ModelWeights(model.checkpoint, model.model)
    rows = np.array([_last(model, sequence, at) for at in (mark, against)])
    score, other = model.project(rows.astype(np.float32))[:, 0].tolist()
    (direction, constant), (lower, own) = (_through_output_layers(model.spec.output, weights, x) for x in rows)
    return Readout(score - other, constant - own, {mark: direction, against: -lower}, "output")


def _through_output_layers(
    layers: Sequence[Dense | Norm | UnitLength], weights: ModelWeights, x: Rows, number: int = 0
) -> tuple[Rows, float]:
    """The vector g and the constant c with score = g·x + c, for the input x (D,) of the output layer ``number``."""
    if number == len(layers):
        return np.ones(1), 0.0
    layer, slot = layers[number], f"output.{number}"
    if isinstance(layer, Dense):
        matrix = weights.values(f"{slot}.weight").astype(np.float64)
        bias = weights.vector(f"{slot}.bias", len(matrix), 0.0)
        before = matrix @ x + bias
        after = activation(layer.activation or "none", before)
        direction, constant = _through_output_layers(layers, weights, after, number + 1)
        direction = direction * np.divide(after, before, out=np.zeros_like(after), where=before != 0)
        return direction @ matrix, constant + float(direction @ bias)
    assert isinstance(layer, Norm)
    weight = weights.vector(f"{slot}.weight", len(x), 1.0)
    bias = weights.vector(f"{slot}.bias", len(x), 0.0)
    after = normalized(x, weight, layer.eps, bias if layer.kind == "layer" else None)
    direction, constant = _through_output_layers(layers, weights, after, number + 1)
    return backward_of_norm(layer, weight, x, direction), constant + float(direction @ bias)


def _last(model: TracedModel, sequence: SequenceTrace, at: int) -> Rows:
    return np.asarray(sequence.at(stream_points(model)[-1], at), np.float64)


def uncapped(model: TracedModel, logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logits before a soft-cap. Logits that float32 has rounded to the cap itself are finite."""
    cap = model.spec.head.softcap if model.spec.head else 0.0
    values = logits.astype(np.float64)
    return np.asarray(cap * np.arctanh(np.clip(values / cap, -NEARLY_ONE, NEARLY_ONE)) if cap else values, np.float64)


# Sweeps: many edited copies of a prompt, and a target for each.
#
#     sweep(llm, prompt, lambda layer, head: ablate(f"blocks.{layer}.attention.heads[heads={head}]"),
#           logit_difference(llm, " Mary", " John"), over={"layer": range(30), "head": range(9)})
#
# The copies run in batches, and share the blocks and tokens before their edits (``engine/edited_copies.py``).

Copy: TypeAlias = Edit | Sequence[Edit]  # the edits of a copy
MOST = 1 << 20  # maximum number of copies of a sweep
BY_TOKEN = ("token", "key", "query")
"""Names of axes whose values are positions. Their labels are the texts of the tokens."""


LETTERS = {"layer": "L", "head": "H", "token": "T", "query": "T", "key": "T'"}  # the letters of axes
PLURALS = {"copy": "copies", "query": "queries"}


@dataclass(frozen=True, repr=False)
class Sweep(Exportable):
    """The target of each edited copy of a prompt: ``values`` has an axis for each of ``axes``, with their values.

    ``unedited`` is the target of the prompt itself. ``pieces`` are the texts of the prompt's tokens. A copy that was
    not run has NaN.
    """

    values: NDArray[np.float64]
    axes: Mapping[str, Sequence[Any]]
    unedited: float
    pieces: Sequence[str]

    def __repr__(self) -> str:
        plurals = {name: PLURALS.get(name, f"{name}s") for name in self.axes}
        shape = " x ".join(f"{len(values):,} {plurals[name]}" for name, values in self.axes.items())
        if not np.isfinite(self.values).any():
            return f"Sweep({shape}, no values)"
        *place, value = self.top(1)[0]
        where = ", ".join(f"{name} {label!r}" for name, label in zip(self.axes, place))
        return f"Sweep({shape}: {self.unedited:.3g} without edits, most changed to {value:.3g} at {where})"

    def labels(self, name: str) -> list[str]:
        """The values of an axis as texts: of positions, the texts of their tokens."""
        values = self.axes[name]
        if name in BY_TOKEN and all(isinstance(at, (int, np.integer)) for at in values):
            return [self.pieces[at] for at in values]
        return [str(value) for value in values]

    def _values(self) -> list[LabelledArray]:
        axes = []
        for name, values in self.axes.items():
            labels = self.labels(name)
            is_token = labels != [str(value) for value in values]
            axes.append(Axis(name, LETTERS.get(name, name), values, labels if is_token else None))
        return [LabelledArray("target", self.values, tuple(axes))]

    def top(self, count: int = 5) -> list[tuple[Any, ...]]:
        """The copies that differ most from the prompt itself: (values of the axes ..., target). NaN comes last."""
        changes = np.nan_to_num(np.abs(self.values - self.unedited), nan=-1.0).ravel()
        order = np.argsort(-changes, kind="stable")[:count]
        places = (np.unravel_index(at, self.values.shape) for at in order)
        own = list(self.axes.values())
        return [(*(values[at] for values, at in zip(own, place)), float(self.values[place])) for place in places]

    def scaled(self, low: float, high: float) -> Sweep:
        """The sweep with targets from ``low`` to ``high`` as 0 to 1. Raises InvalidRequest if both are equal."""
        if low == high:
            raise InvalidRequest(f"low={low:g}, high={high:g}: must differ: the two runs give the same target")
        values = (self.values - low) / (high - low)
        return Sweep(values, self.axes, (self.unedited - low) / (high - low), self.pieces)

    def _repr_html_(self) -> str:
        """The changes of the target as heat maps: a map for each value of the axes before the last two."""
        names = list(self.axes)
        if len(names) == 1:
            return heat((self.values - self.unedited)[None], [""], self.labels(names[0]), f"change by {names[0]}")
        *outer, rows, columns = names
        parts = []
        for place in np.ndindex(self.values.shape[:-2]):
            where = ", ".join(f"{name} {self.labels(name)[at]}" for name, at in zip(outer, place))
            label = f"change by {rows} and {columns}" + (f", {where}" if where else "")
            title = f"<h4>{where}</h4>" if where else ""
            parts.append(
                title + heat(self.values[place] - self.unedited, self.labels(rows), self.labels(columns), label)
            )
        return "".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dictionary for JSON. A value that is not finite is None."""
        finite = np.isfinite(self.values)
        values = np.where(finite, self.values, 0).astype(object)
        values[~finite] = None
        return {
            "axes": {name: list(values) for name, values in self.axes.items()},
            "labels": {name: self.labels(name) for name in self.axes},
            "values": values.tolist(),
            "unedited": self.unedited,
            "pieces": list(self.pieces),
        }


def sweep(
    model: TracedModel,
    prompt: Any,
    copies: Callable[..., Copy | None] | Sequence[Copy],
    target: Target,
    *,
    over: Mapping[str, Sequence[Any]] | None = None,
    edits: Sequence[Edit] = (),
    told: Callable[[int, int], object] = lambda done, total: None,
) -> Sweep:
    """Run edited copies of a prompt in batches, and measure the target of each.

    Args:
        copies: the edits of each copy. A function returns the edits for values of the axes of ``over``, or None to
            leave a copy out.
        target: a function of the logits (V,) after the prompt's last token (``trace/lenses/targets.py``).
        over: the axes, and the values that each takes: ``{"layer": range(30), "head": range(9)}``. The function gets
            one value of each axis. Axes of positions are named "token", "key" or "query".
        edits: edits of the prompt itself, which all copies have too.
        told: called with the number of finished copies and the number of all copies.

    Raises:
        InvalidRequest: an edit does not fit, there are too many copies, or the target fails.
    """
    if callable(copies):
        if not over:
            raise InvalidRequest('over: name the axes of the sweep and their values, such as {"layer": range(30)}')
        axes = {name: list(values) for name, values in over.items()}
    else:
        axes = {"copy": list(range(len(copies)))}
    shape = tuple(len(values) for values in axes.values())
    if not 0 < np.prod(shape, dtype=np.float64) <= MOST:
        raise InvalidRequest(f"a sweep of {' x '.join(map(str, shape))} copies: there must be 1 to {MOST:,}")
    places, own = list[tuple[int, ...]](), list[list[Edit]]()
    for place, values in zip(itertools.product(*map(range, shape)), itertools.product(*axes.values())):
        made = copies(*values) if callable(copies) else copies[place[0]]
        if made is not None:
            places.append(place)
            own.append([made] if isinstance(made, Edit) else list(made))
    found, unedited, done = np.full(shape, np.nan), np.nan, 0
    for number, logits in model.edited_outputs(prompt, own, edits):
        value = _measured(target, logits)
        if number < 0:
            unedited = value
            continue
        found[places[number]] = value
        done += 1
        told(done, len(own))
    pieces = [model.tokenizer.piece(token) for token in model.inputs.prompt(prompt)]
    return Sweep(found, axes, unedited, pieces)


def _measured(target: Target, logits: NDArray[np.float32]) -> float:
    try:
        return float(target(logits))
    except (TypeError, ValueError, IndexError) as error:
        reason = f"{type(error).__name__}: {shown(str(error))}"
        raise InvalidRequest(f"target={brief(target)}: must return a number for logits (V,): {reason}") from error
