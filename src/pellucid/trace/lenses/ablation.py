"""Ablation and attention knock-out: a target without a part of the model, or without an edge of attention."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.trace.edits import Edit, ablate, mask
from pellucid.trace.lenses.patching import Told, layers_around, layers_with, untold
from pellucid.trace.lenses.sweep import Sweep, sweep
from pellucid.trace.lenses.targets import Target
from pellucid.trace.traced_model import TracedModel, read
from pellucid.util.checks import index, items, one_of, whole


def ablation_sweep(
    model: TracedModel,
    prompt: Any,
    target: Target,
    *,
    kind: str = "attention.heads",
    by: Literal["head", "token", "layer"] = "head",
    values: Literal["zero", "mean", "resample"] = "zero",
    texts: Iterable[Any] = (),
    seed: int = 0,
    told: Told = untold,
) -> Sweep:
    """The target without each part: by layer and head (all positions), by layer and token, or by layer alone.

    Args:
        kind: the ablated value of each block, such as "attention.heads", "attention.output", "feedforward.output".
        values: what replaces the part: zeros, its mean over all tokens of ``texts``, or the values of a random token of
            ``texts`` at each position.
        texts: prompts of other runs, for "mean" and "resample".
        seed: the seed of the random tokens.

    Raises:
        InvalidRequest: there are no ``texts``, or no block has the value.
    """
    one_of("by", by, ("head", "token", "layer"))
    names = layers_with(model, kind)
    count = len(model.inputs.prompt(prompt))
    instead = _instead(model, names, values, texts, count, seed)
    columns = {"head": max(model.points[name].heads for name in names.values()), "token": count, "layer": 1}[
        by
    ]
    if not columns:
        raise InvalidRequest(f"kind={kind}: it has no heads: sweep by token or by layer")

    def without(layer: int, at: int = 0) -> Edit | None:
        name, own = names[layer], instead.get(layer)
        if by == "head" and at >= model.points[name].heads:
            return None
        where = {
            "head": f"[heads={at}; tokens=:{count}]",
            "token": f"[tokens={at}]",
            "layer": f"[tokens=:{count}]",
        }[by]
        if own is None:
            return ablate(name + where)
        if by == "token":
            return ablate(name + where, own[at])
        return ablate(name + where, own[:, at : at + 1] if by == "head" else own)

    over: dict[str, Any] = {"layer": list(names), **({} if by == "layer" else {by: range(columns)})}
    return sweep(model, prompt, without, target, over=over, told=told)


def _instead(
    model: TracedModel, names: dict[int, str], values: str, texts: Iterable[Any], count: int, seed: int
) -> dict[int, NDArray[np.float32]]:
    """The values (T, ...) that replace a part of each layer; none for zeros."""
    if values == "zero":
        return {}
    if values not in ("mean", "resample"):
        raise InvalidRequest(f"values={values!r}: must be zero, mean or resample")
    runs = [read(model, text, list(names.values())) for text in items("texts", texts, "prompts")]
    if not runs:
        raise InvalidRequest(f"texts is empty: values={values!r} needs a list of prompts of other runs")
    rows = {layer: np.concatenate([run[name] for run in runs]) for layer, name in names.items()}
    if values == "mean":
        return {
            layer: np.repeat(own.mean(0, dtype=np.float64).astype(np.float32)[None], count, 0)
            for layer, own in rows.items()
        }
    chosen = np.random.default_rng(seed).integers(0, sum(map(len, runs)), count)
    return {layer: own[chosen] for layer, own in rows.items()}


def knockout_sweep(
    model: TracedModel,
    prompt: Any,
    target: Target,
    *,
    query: int | str = -1,
    window: int = 1,
    told: Told = untold,
) -> Sweep:
    """The target when ``query`` cannot attend to each token, by layer and key (Geva et al. 2023).

    Args:
        query: the position, or positions as in a selection, whose attention is masked: -1 is the last token.
        window: the number of consecutive blocks, around each layer, whose heads are masked.

    Raises:
        InvalidRequest: the model has no attention scores, or ``query`` is not a position.
    """
    names = layers_with(model, "attention.scores")
    window, layers = whole("window", window, 1, len(model.spec.blocks)), list(names)
    count = len(model.inputs.prompt(prompt))
    last = query if isinstance(query, str) else index("query", query, count)
    keys = range(count if isinstance(last, str) else last)

    def knock_out(layer: int, key: int) -> list[Edit]:
        own = layers_around(layers, layer, window)
        return [mask(f"{names[one]}[tokens={last}; keys={key}]") for one in own]

    return sweep(model, prompt, knock_out, target, over={"layer": layers, "key": keys}, told=told)
