"""Activation patching finds the values that make two prompts' outputs differ (Vig et al. 2020; Meng et al. 2022).

The corrupted prompt runs many times. In each run, one value is replaced by its value in the clean run. The effect is
how far the patch moves the difference of two logits from the corrupted run (0) to the clean run (1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.trace.edits import Edit, replace
from pellucid.trace.export import Axis, Exportable, LabelledArray, numbered, values_named
from pellucid.trace.lenses.heads import largest
from pellucid.trace.selection import select
from pellucid.trace.traced_model import TracedModel, read, token_of

KINDS = ("residual", "attention.output", "feedforward.output", "attention.heads")


@dataclass(frozen=True, repr=False)
class Patching(Exportable):
    """The results of a sweep: ``effects`` (L, T) by block and position, or (L, H) by block and head.

    ``clean`` and ``corrupted`` are the differences of the two logits in the runs without patches.
    """

    kind: str
    effects: NDArray[np.float64]
    clean: float
    corrupted: float
    pieces: list[str]
    by_head: bool

    def __repr__(self) -> str:
        layer, at = np.unravel_index(np.nanargmax(self.effects), self.effects.shape)
        where = f"head {at}" if self.by_head else f"{self.pieces[at]!r}"
        return (
            f"Patching({self.kind}: {self.effects.shape[0]} layers x {self.effects.shape[1]}, most "
            f"{self.effects[layer, at]:.2f} in block {layer} at {where})"
        )

    def labelled(self, *names: str) -> list[LabelledArray]:
        """As in ``Exportable``: effect."""
        layers, columns = self.effects.shape
        tokens = Axis("token", "T", range(len(self.pieces)), self.pieces)
        axes = (numbered("layer", "L", layers), numbered("head", "H", columns) if self.by_head else tokens)
        return values_named({"effect": LabelledArray("effect", self.effects, axes)}, names)

    def _repr_html_(self) -> str:
        """The effects as a heat map."""
        from pellucid.util.display import heat

        columns = [str(head) for head in range(self.effects.shape[1])] if self.by_head else self.pieces
        rows = [str(layer) for layer in range(len(self.effects))]
        return heat(self.effects, rows, columns, f"effect of patching {self.kind}")

    def top(self, count: int = 5) -> list[tuple[int, int, float]]:
        """The largest effects: (layer, position or head, effect)."""
        return largest(self.effects, count)

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dictionary for JSON."""
        return {
            **vars(self),
            "effects": [[_finite(effect) for effect in row] for row in self.effects.tolist()],
        }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def patch_sweep(
    model: TracedModel,
    clean: Any,
    corrupted: Any,
    token: int | str,
    against: int | str,
    *,
    kind: str = "residual",
    by_head: bool = False,
    told: Callable[[int, int], object] = lambda done, total: None,
) -> Patching:
    """Run the corrupted prompt once for each block and position, to measure the effect of each value.

    In each run, this one value is replaced by the value of the clean run. With ``by_head``, the prompt runs once for
    each block and head, and the values of the head are replaced at all positions.

    Args:
        clean, corrupted: prompts with the same number of tokens.
        token, against: the two tokens whose logits after the last position are compared.
        kind: the patched value of each block: "residual", "attention.output", "feedforward.output", or with
            ``by_head`` "attention.heads".
        told: called with the number of finished runs and the number of all runs.

    Raises:
        InvalidRequest: the prompts differ in length, the runs do not differ, or no block has the value.
    """
    if by_head:
        kind = "attention.heads"
    names = {layer: f"blocks.{layer}.{kind}" for layer in range(len(model.spec.blocks))}
    names = {layer: name for layer, name in names.items() if name in model.points}
    if not names:
        select(model.points, [f"blocks.0.{kind}"])  # raises an error with the nearest names
    token_id, other = token_of(model, token), token_of(model, against)
    source = read(model, clean, [*names.values(), "project.logits"])
    broken = read(model, corrupted, ["project.logits"])
    if len(source) != len(broken):
        raise InvalidRequest(
            f"clean has {len(source)} tokens, corrupted {len(broken)}: patching needs prompts of equal length"
        )
    last = f"project.logits[tokens={len(source) - 1}]"

    def difference(logits: NDArray[np.float32]) -> float:
        return float(logits[-1][token_id]) - float(logits[-1][other])

    good, bad = difference(source["project.logits"]), difference(broken["project.logits"])
    if good == bad:
        raise InvalidRequest(
            f"both prompts give {brief(token)} and {brief(against)} the same difference of logits"
        )
    columns = max(model.points[name].heads for name in names.values()) if by_head else len(source)
    effects, done = np.full((len(model.spec.blocks), columns), np.nan), 0
    total = sum(model.points[name].heads if by_head else columns for name in names.values())
    for layer, name in names.items():
        values, count = source[name], model.points[name].heads if by_head else columns
        edits: list[Edit] = []
        for at in range(count):
            if by_head:
                edits.append(replace(f"{name}[heads={at}]", values[:, at : at + 1]))
            else:
                edits.append(replace(f"{name}[tokens={at}]", values[at]))
        for at, logits in enumerate(_run_all(model, corrupted, last, edits)):
            effects[layer, at] = (difference(logits) - bad) / (good - bad)
        done += count
        told(done, total)
    return Patching(kind, effects, good, bad, source.pieces, by_head)


def _run_all(
    model: TracedModel, prompt: Any, point: str, edits: Sequence[Edit]
) -> Sequence[NDArray[np.float32]]:
    """Run a prompt once for each edit; the runs are batched into the same steps.

    Returns the recorded logits of each run.
    """
    with model.trace(point) as trace:
        model.generate_edited(prompt, [[edit] for edit in edits])
    return [sequence["project.logits"] for sequence in trace.sequences]
