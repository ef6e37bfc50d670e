"""Sweeps: many edited copies of a prompt, and a target for each.

    sweep(llm, prompt, lambda layer, head: ablate(f"blocks.{layer}.attention.heads[heads={head}]"),
          logit_difference(llm, " Mary", " John"), over={"layer": range(30), "head": range(9)})

The copies run in batches, and share the blocks and tokens before their edits (``engine/edited_copies.py``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief, shown
from pellucid.trace.edits import Edit
from pellucid.trace.export import Axis, Exportable, LabelledArray
from pellucid.trace.lenses.targets import Target
from pellucid.trace.traced_model import TracedModel

Copy: TypeAlias = Edit | Sequence[Edit]
"""The edits of a copy."""
MOST = 1 << 20
"""Maximum number of copies of a sweep."""
BY_TOKEN = ("token", "key", "query")
"""Names of axes whose values are positions. Their labels are the texts of the tokens."""


LETTERS = {"layer": "L", "head": "H", "token": "T", "query": "T", "key": "T'"}
"""The letters of axes."""
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
        """The sweep with targets from ``low`` to ``high`` as 0 to 1.

        Raises:
            InvalidRequest: both are equal.
        """
        if low == high:
            raise InvalidRequest(f"low={low:g}, high={high:g}: must differ: the two runs give the same target")
        values = (self.values - low) / (high - low)
        return Sweep(values, self.axes, (self.unedited - low) / (high - low), self.pieces)

    def _repr_html_(self) -> str:
        """The changes of the target as heat maps: a map for each value of the axes before the last two."""
        from pellucid.util.display import heat

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
