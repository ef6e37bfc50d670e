"""Why this token: the tokens, heads and neurons without which its lead is smaller, each checked by taking it out.

Lead is the logit of the token minus the logit of another token, by default the second most likely. Candidates are
the parts that add most to the lead themselves, or whose value times gradient is largest; each candidate is then taken
out of the model (a token: its embedding becomes zeros), and the model runs again. What is reported was measured in
these runs, not estimated.

``find_heads`` searches heads by what they read: a head that reads a token from one position, and less from others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.trace.backward.gradients import gradients
from pellucid.trace.edits import Edit, ablate
from pellucid.trace.lenses.attribution import attribute
from pellucid.trace.lenses.attribution import needed as attribution_points
from pellucid.trace.lenses.heads import pattern_points
from pellucid.trace.lenses.patching import LAST_LOGITS
from pellucid.trace.lenses.targets import LogitDifference, LogProbability
from pellucid.trace.trace import SequenceTrace
from pellucid.trace.traced_model import TracedModel, read, token_of
from pellucid.util.checks import whole

HEADS, NEURONS = "blocks.*.attention.heads", "blocks.*.feedforward.hidden"
MOST_TOKENS, MOST_TRIED, MOST_TOP = 512, 512, 32
LIKELY, RAISED = 50, 3


@dataclass(frozen=True)
class Cause:
    """A part of the model, and what the model says without it.

    ``point`` selects the part, ``token`` is the position where it acts. ``layer`` and ``unit`` are the block and the
    number of a head or neuron (None for a token). A head reads ``key`` most there, with the ``weight``. Without the
    part, ``lead`` and ``probability`` are the token's, and ``says`` is the most likely token, with the probability
    ``says_probability``. ``raises`` are the tokens, of the 50 most likely in the whole model, whose logits fall most
    without it.
    """

    point: str
    token: int
    layer: int | None
    unit: int | None
    key: int | None
    weight: float | None
    lead: float
    probability: float
    says: int
    says_probability: float
    raises: list[int]


@dataclass(frozen=True)
class Causes:
    """Parts that make the ``token`` lead over the token ``against``, those with the largest effect first.

    ``lead`` and ``probability`` are the token's in the whole model. ``tried`` is the number of heads and of neurons
    that were taken out, one after the other.
    """

    token: int
    against: int
    lead: float
    probability: float
    tokens: list[Cause]
    heads: list[Cause]
    neurons: list[Cause]
    tried: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """The values as plain numbers, for JSON."""
        return asdict(self)


def causes(
    model: TracedModel,
    prompt: Any,
    token: int | str | None = None,
    *,
    against: int | str | None = None,
    top: int = 3,
    tried: int = 24,
    edits: Sequence[Edit] = (),
) -> Causes:
    """The tokens, heads and neurons that make a token lead after a prompt.

    Args:
        token: the token, as a text or an id; by default the most likely token.
        against: the token that it leads over; by default the most likely other token.
        top: number of heads, and of neurons, that are returned. Tokens are all returned.
        tried: number of heads, and of neurons, that are taken out.
        edits: edits of the prompt's run, which all runs have.

    Raises:
        InvalidRequest: the model has an encoder or generates no text, the prompt has more than 512 tokens, a number is
            out of range, or a part of the model has no gradient.
    """
    top, tried = whole("top", top, 1, MOST_TOP), whole("tried", tried, 1, MOST_TRIED)
    ids = model.inputs.prompt(prompt)
    if len(ids) > MOST_TOKENS:
        raise InvalidRequest(f"prompt has {len(ids):,} tokens; the limit is {MOST_TOKENS:,} here")
    run = read(model, ids, [*attribution_points(model), LAST_LOGITS], list(edits))
    logits = run["project.logits"][-1]
    chosen = int(logits.argmax()) if token is None else token_of(model, token)
    others = np.where(np.arange(len(logits)) == chosen, -np.inf, logits)
    other = int(others.argmax()) if against is None else token_of(model, against)
    if other == chosen:
        raise InvalidRequest(f"against={against!r}: must be another token than the token itself")
    target = LogitDifference(chosen, other)
    parts = _candidates(model, run, ids, target, tried, edits)
    parts["tokens"] = [_TakenOut(f"embed[tokens={at}]", at) for at in range(len(ids))]
    listed = [part for kind in ("tokens", "heads", "neurons") for part in parts[kind]]
    outputs = dict(model.edited_outputs(ids, [[ablate(part.point)] for part in listed], list(edits)))
    measured = {part: _measured(target, outputs[number]) for number, part in enumerate(listed)}
    likely = np.argsort(-outputs[-1], kind="stable")[:LIKELY]
    raises = {part: _falling(outputs[-1], outputs[number], likely) for number, part in enumerate(listed)}
    lead, probability, *_ = _measured(target, outputs[-1])
    best = {
        kind: sorted(some, key=lambda part: measured[part][0])[: None if kind == "tokens" else top]
        for kind, some in parts.items()
    }
    patterns = _patterns(model, ids, [part.layer for part in best["heads"] if part.layer is not None], edits)
    made = {
        kind: [_cause(part, measured[part], patterns, raises[part]) for part in some] for kind, some in best.items()
    }
    counts = {kind: len(parts[kind]) for kind in ("heads", "neurons")}
    return Causes(chosen, other, lead, probability, made["tokens"], made["heads"], made["neurons"], counts)


@dataclass(frozen=True)
class _TakenOut:
    point: str
    token: int
    layer: int | None = None
    unit: int | None = None


def _candidates(
    model: TracedModel, run: SequenceTrace, ids: list[int], target: LogitDifference, count: int, edits: Sequence[Edit]
) -> dict[str, list[_TakenOut]]:
    """The heads and neurons that are taken out.

    Heads: half by what they add to the difference of the logits themselves, and half by value times gradient, which
    also finds heads whose effect passes through later blocks. A direct effect may be large where the gradient is not.
    Neurons: by value times gradient.
    """
    direct, heads, neurons = _direct_heads(model, run, target), list[tuple[float, _TakenOut]](), list[Any]()
    points = [name for name in model.points if fnmatchcase(name, HEADS) or fnmatchcase(name, NEURONS)]
    found = gradients(model, ids, target, points, edits=edits) if points else None
    pairs = [(name, gradient, found.values[name]) for name, gradient in found.points.items()] if found else []
    for name, gradient, value in pairs:
        layer, effect = int(name.split(".")[1]), gradient.astype(np.float64) * value
        first = len(ids) - len(effect)  # after the last block, only the last token is computed
        if name.endswith(".heads"):
            by_row = effect.sum(-1)  # (T, H)
            for head, size in enumerate(by_row.sum(0)):
                at = int(np.abs(by_row[:, head]).argmax()) + first
                heads.append((float(size), _TakenOut(f"{name}[heads={head}]", at, layer, head)))
        elif effect.ndim == 2:
            # The first token's neurons have huge values in most models, and stand for no content.
            for flat in np.argsort(-effect, axis=None)[: count + effect.shape[1]]:
                row, unit = divmod(int(flat), effect.shape[1])
                if row + first > 0 or len(ids) == 1:
                    part = _TakenOut(f"{name}[tokens={row + first}; dims={unit}]", row + first, layer, unit)
                    neurons.append((float(effect[row, unit]), part))
    mixed = {part.point: part for part in (*direct[: (count + 1) // 2], *_largest(heads, count))}
    return {"heads": list(mixed.values())[:count], "neurons": _largest(neurons, count)}


def _direct_heads(model: TracedModel, run: SequenceTrace, target: LogitDifference) -> list[_TakenOut]:
    """Heads in descending order of what they add to the difference of the logits after the last token."""
    parts = attribute(model, run, target.first, against=target.second).contributions
    found = [one for one in parts if one.kind == "head" and one.layer is not None and one.head is not None]
    return [
        _TakenOut(f"blocks.{one.layer}.attention.heads[heads={one.head}]", len(run) - 1, one.layer, one.head)
        for one in sorted(found, key=lambda one: -one.value)
    ]


def _largest(parts: list[tuple[float, _TakenOut]], count: int) -> list[_TakenOut]:
    return [part for _, part in sorted(parts, key=lambda one: -one[0])[:count]]


def _measured(target: LogitDifference, logits: NDArray[np.float32]) -> tuple[float, float, int, float]:
    """Lead and probability of the token, the most likely token, and its probability."""
    says = int(logits.argmax())
    first, best = (LogProbability(token, raised=True)(logits) for token in (target.first, says))
    return target(logits), first, says, best


def _patterns(model: TracedModel, ids: list[int], layers: list[int], edits: Sequence[Edit]) -> SequenceTrace | None:
    names = [f"blocks.{layer}.attention.pattern" for layer in sorted(set(layers))]
    names = [name for name in names if name in model.points]
    return read(model, ids, names, list(edits)) if names else None


def _falling(whole: NDArray[np.float32], left: NDArray[np.float32], likely: NDArray[np.int64]) -> list[int]:
    """The tokens among ``likely`` whose logits fall most from the whole model to the model without a part."""
    falls = whole[likely].astype(np.float64) - left[likely]
    return [int(likely[at]) for at in np.argsort(-falls, kind="stable")[:RAISED]]


def raised_tokens(
    model: TracedModel, prompt: Any, points: Sequence[str], *, edits: Sequence[Edit] = ()
) -> list[list[int]]:
    """For each of some parts, the 3 tokens whose logits after the prompt fall most if the part is taken out.

    The tokens are among the 50 most likely of the whole model. A part is a selection of a point, such as
    ``"blocks.3.feedforward.hidden[tokens=-1; dims=17]"``.

    Raises:
        InvalidRequest: a point is unknown, the prompt has more than 512 tokens, or more than 512 parts are named.
    """
    ids, count = model.inputs.prompt(prompt), whole("number of points", len(points), 1, MOST_TRIED)
    if len(ids) > MOST_TOKENS:
        raise InvalidRequest(f"prompt has {len(ids):,} tokens; the limit is {MOST_TOKENS:,} here")
    outputs = dict(model.edited_outputs(ids, [[ablate(point)] for point in points], list(edits)))
    likely = np.argsort(-outputs[-1], kind="stable")[:LIKELY]
    return [_falling(outputs[-1], outputs[number], likely) for number in range(count)]


def _cause(
    part: _TakenOut, measured: tuple[float, float, int, float], patterns: SequenceTrace | None, raises: list[int]
) -> Cause:
    key = weight = None
    name = f"blocks.{part.layer}.attention.pattern"
    if part.point.startswith(f"blocks.{part.layer}.attention.heads") and patterns is not None:
        row = patterns[name][part.unit, part.token]
        key, weight = int(row.argmax()), float(row.max())
    return Cause(part.point, part.token, part.layer, part.unit, key, weight, *measured, raises)


@dataclass(frozen=True)
class ReadingHead:
    """A head that reads ``key`` at position ``token`` with the ``weight``, and with the ``mean`` weight elsewhere.

    ``elsewhere`` are the other positions with the largest weights on the same key: (position, weight).
    """

    layer: int
    head: int
    token: int
    key: int
    weight: float
    mean: float
    elsewhere: list[tuple[int, float]]


def find_heads(
    model: TracedModel, of: Any, token: int = -1, *, key: int | None = None, block: int | None = None, top: int = 8
) -> list[ReadingHead]:
    """Heads that read specifically at a position: the weight on a key, minus the mean weight of other positions on it.

    ``of`` is a prompt, or a sequence of a trace that has all patterns. With ``key``, only this key is considered;
    with ``block``, only heads of this block. A position reads itself and the first token in many heads, which says
    little: the position itself is left out, and the mean of the others takes away what all positions read.

    Raises:
        InvalidRequest: a number is out of range, the text has more than 512 tokens or fewer than two, or the model has
            no patterns.
    """
    names = pattern_points(model)
    sequence = read(model, of, names)
    count = len(sequence.pieces)
    if not 2 <= count <= MOST_TOKENS:
        raise InvalidRequest(f"prompt has {count:,} tokens; a search needs 2 to {MOST_TOKENS:,}")
    at, most = whole("token", token, -count, count - 1) % count, whole("top", top, 1, MOST_TOP)
    only = None if key is None else whole("key", key, 0, count - 1)
    found = list[ReadingHead]()
    for name in names:
        layer = int(name.split(".")[1])
        for head, pattern in enumerate(sequence[name] if block in (None, layer) else ()):
            rows = pattern.astype(np.float64)  # (T, T')
            seen = np.tril(np.ones_like(rows), -1) if not rows[0, 1:].any() else 1 - np.eye(*rows.shape)
            seen[at] = 0
            seen[0] = 0  # the first token reads itself alone
            mean = (rows * seen).sum(0) / np.maximum(seen.sum(0), 1)
            score = rows[at] - mean
            score[at] = -np.inf
            best = int(score.argmax()) if only is None else only
            order = np.argsort(-(rows[:, best] * seen[:, best]))[:2]
            elsewhere = [(int(row), float(rows[row, best])) for row in order if seen[row, best]]
            found.append(ReadingHead(layer, head, at, best, float(rows[at, best]), float(mean[best]), elsewhere))
    return sorted(found, key=lambda one: one.mean - one.weight)[:most]
