"""Output points: generated tokens, the effect of each sampler step on them, their times, and the use of the cache.

Output points are values of a request, not of the plan. They are read from the outputs of the request. N is the number
of generated tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.plan.plan import Plan
from pellucid.plan.points import Point, View
from pellucid.sample.chain import TokenTrace
from pellucid.sample.step import steps

STEP_COLUMNS = ("removed", "left", "removed_mass", "moved", "entropy_before", "entropy_after")
"""The columns of a sampler step's point (``sample/logprobs.py``)."""


class Outputs(Protocol):
    """The generated outputs of a sequence. ``SequenceOutput`` (``engine/request.py``) implements it."""

    ids: list[int]
    times: list[float]
    trace: list[TokenTrace]
    held: list[str]
    pages: list[int]

    @property
    def cached(self) -> int: ...


class OutputPoint(Struct, frozen=True):
    point: Point
    values: Callable[[Outputs], Any]


def output_points() -> Mapping[str, OutputPoint]:
    """All output points by name, in the order of the pipeline."""
    about = f"the effect of the step: {', '.join(STEP_COLUMNS)}"
    points = [_output(f"sample.{name}", about, _effects(name), columns=len(STEP_COLUMNS)) for name in steps()]
    points += [_output(f"sample.{name}", about, _each(values), unit) for name, about, values, unit in CHAIN]
    points += [_output(*row) for row in OUTPUTS]
    return {output.point.name: output for output in points}


CHAIN: Sequence[tuple[str, str, Callable[[TokenTrace], Any], str]] = (
    ("entropy", "the entropy of the model's distribution", lambda token: token.entropy, "nats"),
    ("probability", "the chosen token's probability in the model", lambda token: token.probability, "probability"),
    (
        "final_probability",
        "the chosen token's probability after the chain",
        lambda token: token.final_probability,
        "probability",
    ),
    ("rank", "the chosen token's rank in the model's distribution", lambda token: token.rank, "1 is the likeliest"),
    (
        "number",
        "the random number of the draw, NaN if none was drawn",
        lambda token: float("nan") if token.number is None else token.number,
        "in [0, 1)",
    ),
)
"""Points with one value for each generated token, from the token's trace: name, description, function, unit."""
HELD = "the length of the text that is held back after each token, because it may begin a stop string"
HIT = "tokens of the prompt that were in the prefix cache"
PAGES = "pages of the sequence's keys and values when each token was sampled"
OUTPUTS: Sequence[tuple[str, str, Callable[[Outputs], Any], str, str]] = (
    ("detokenize.ids", "the generated tokens", lambda own: own.ids, "token", "int32"),
    ("detokenize.held", HELD, lambda own: [len(text) for text in own.held], "characters", "int32"),
    ("cache.prefix_hit", HIT, lambda own: [own.cached], "tokens", "int32"),
    ("cache.pages", PAGES, lambda own: own.pages, "pages", "int32"),
    ("timings.tokens", "the time of each token since the start", lambda own: own.times, "seconds", "float32"),
)
"""Points from the outputs of a sequence: name, description, function, unit, type."""


def _output(
    name: str, about: str, values: Callable[[Outputs], Any], unit: str = "", dtype: str = "float32", columns: int = 0
) -> OutputPoint:
    view = View(1, columns or 1, columns or 1, columns or 1, "C" if columns else "")
    point = Point(name, about, view, rows="outputs", kind="output", dtype=dtype, unit=unit)
    return OutputPoint(point, values)


def _each(values: Callable[[TokenTrace], Any]) -> Callable[[Outputs], list[Any]]:
    return lambda outputs: [values(token) for token in outputs.trace]


def _effects(name: str) -> Callable[[Outputs], list[list[float]]]:
    """The columns of a sampler step for each token; NaN if the step was not in the chain."""

    def row(token: TokenTrace) -> list[float]:
        step = next((step for step in token.steps if step.name == name), None)
        return [float("nan") if step is None else getattr(step, column) for column in STEP_COLUMNS]

    return _each(row)


def all_points(plan: Plan, *, generates: bool) -> dict[str, Point]:
    """The points of a plan and of its encoder by name, in the order of the pipeline.

    A model that generates text also has the output points.
    """
    points = {**(plan.encoder.points if plan.encoder else {}), **plan.points}
    if generates:
        points |= {name: output.point for name, output in output_points().items()}
    return points


def array_of(name: str, outputs: Outputs | None) -> NDArray[Any]:
    """The values of an output point, (N,) or (N, columns); empty if the sequence has no outputs."""
    output = output_points()[name]
    values = np.asarray([] if outputs is None else output.values(outputs), output.point.dtype)
    return values.reshape(-1, *output.point.sizes)
