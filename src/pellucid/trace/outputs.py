"""Output points: generated tokens, the effect of each sampler step on them, their times, and the use of the cache.

They are values of the request, not of the plan, and are read from its outputs. N is the number of generated tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.plan.plan import Plan, View
from pellucid.sample.step import steps
from pellucid.sample.trace import TokenTrace
from pellucid.trace.points import Point, points_of

STEP_COLUMNS = ("removed", "left", "removed_mass", "moved", "entropy_before", "entropy_after")
"""The columns of a sampler step's point (``sample/comparison.py``)."""


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
    """A point whose values ``of`` computes from a sequence's outputs. ``sampled`` points need a trace of the chain."""

    name: str
    about: str
    of: Callable[[Outputs], Any]
    unit: str = ""
    dtype: str = "float32"
    columns: int = 0
    sampled: bool = False


def output_points() -> Mapping[str, OutputPoint]:
    """All output points by name, in the order of the pipeline."""
    return {one.name: one for one in _points()}


def _points() -> Iterator[OutputPoint]:
    for name in steps():
        yield OutputPoint(
            f"sample.{name}", f"what the step did: {', '.join(STEP_COLUMNS)}", _step(name), "", "float32",
            len(STEP_COLUMNS), True,
        )  # fmt: skip
    chain: Sequence[tuple[str, str, Callable[[TokenTrace], Any], str]] = (
        ("entropy", "the entropy of the model's distribution", lambda one: one.entropy, "nats"),
        (
            "probability",
            "the chosen token's probability in the model",
            lambda one: one.probability,
            "probability",
        ),
        ("final_probability", "the same, after the chain", lambda one: one.final_probability, "probability"),
        ("rank", "its rank in the model's distribution", lambda one: one.rank, "1 is the likeliest"),
        ("number", "the random number that was drawn, NaN if none was", _number, "in [0, 1)"),
    )
    for name, about, of, unit in chain:
        yield OutputPoint(f"sample.{name}", about, _each(of), unit, sampled=True)
    yield OutputPoint(
        "detokenize.ids", "the tokens that were generated", lambda made: made.ids, "token", "int32"
    )
    yield OutputPoint(
        "detokenize.held", "how much text was held back after each, because a stop string may begin with it",
        lambda made: [len(text) for text in made.held], "characters", "int32", sampled=True,
    )  # fmt: skip
    yield OutputPoint(
        "cache.prefix_hit", "how many tokens of the prompt came from the prefix cache", lambda made: [made.cached],
        "tokens", "int32",
    )  # fmt: skip
    yield OutputPoint(
        "cache.pages", "how many pages of keys and values the sequence had when each was drawn",
        lambda made: made.pages, "pages", "int32", sampled=True,
    )  # fmt: skip
    yield OutputPoint(
        "timings.tokens", "when each token came, from the start", lambda made: made.times, "seconds"
    )


def _number(one: TokenTrace) -> float:
    return float("nan") if one.number is None else one.number


def _each(of: Callable[[TokenTrace], Any]) -> Callable[[Outputs], list[Any]]:
    return lambda made: [of(one) for one in made.trace]


def _step(name: str) -> Callable[[Outputs], list[list[float]]]:
    """The columns of a sampler step for each token; NaN if the step was not in the chain."""
    nothing = [float("nan")] * len(STEP_COLUMNS)

    def of(made: Outputs) -> list[list[float]]:
        return [
            next(
                ([getattr(step, c) for c in STEP_COLUMNS] for step in one.steps if step.name == name), nothing
            )
            for one in made.trace
        ]

    return of


def all_points(plan: Plan) -> dict[str, Point]:
    """The points of a plan by name, in the order of the pipeline. A plan with logits also has the output points."""
    made = points_of(plan)
    if "project.logits" in made:
        made |= {name: _as_point(one) for name, one in output_points().items()}
    return made


def _as_point(one: OutputPoint) -> Point:
    """Convert an output point to a ``Point``."""
    sizes, letters = ((one.columns,), ("C",)) if one.columns else ((), ())
    view = View(1, max(one.columns, 1), max(one.columns, 1), max(one.columns, 1))
    return Point(one.name, "output", -1, 0, view, "outputs", one.dtype, letters, sizes, one.about, one.unit)


def array_of(name: str, made: Outputs | None) -> NDArray[Any]:
    """The values of an output point, (N,) or (N, columns); empty if the sequence has no outputs."""
    one = output_points()[name]
    kind = np.int32 if one.dtype == "int32" else np.float32
    values = np.asarray([] if made is None else one.of(made), kind)
    return values.reshape(-1, one.columns) if one.columns else values.reshape(-1)
