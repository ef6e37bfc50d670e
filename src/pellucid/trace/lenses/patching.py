"""Activation patching (Vig et al. 2020), ablation and attention knock-out: the values that make outputs differ."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.trace.edits import Edit, ablate, add, mask, replace
from pellucid.trace.lenses.targets import Sweep, Target, sweep
from pellucid.trace.positions import TokenTexts
from pellucid.trace.selection import select
from pellucid.trace.trace import SequenceTrace
from pellucid.trace.traced_model import TracedModel, read, read_copies
from pellucid.util.checks import index, items, one_of, text, whole

# Activation patching finds the values that make two prompts' outputs differ (Vig et al. 2020; Meng et al. 2022).
#
# The corrupted prompt runs many times. In each run, one value is replaced by its value in the clean run. The effect is
# how far the patch moves the target from the corrupted run (0) to the clean run (1).

Told = Callable[[int, int], object]
LAST_LOGITS = "project.logits[tokens=-1]"


def untold(done: int, total: int) -> None: ...


def layers_with(model: TracedModel, kind: str) -> dict[int, str]:
    """The points of ``kind`` by block: "residual", "attention.heads". Raises InvalidRequest if no block has this point;
    the error lists the nearest names.
    """
    names = {layer: f"blocks.{layer}.{kind}" for layer in range(len(model.spec.blocks))}
    names = {layer: name for layer, name in names.items() if name in model.points}
    if not names:
        select(model.points, [f"blocks.0.{kind}"])  # raises
    return names


def layers_around(layers: Sequence[int], layer: int, window: int) -> Sequence[int]:
    """``window`` consecutive items of ``layers``, with ``layer`` in the middle; fewer at the ends."""
    first = layers.index(layer) - (window - 1) // 2
    return layers[max(first, 0) : max(first + window, 1)]


def clean_values(
    model: TracedModel, clean: Any, corrupted: Any, kind: str, by: Literal["token", "head"]
) -> tuple[dict[int, str], SequenceTrace, list[int]]:
    """The patched points by block, the clean run with their values and last logits, and the corrupted prompt's tokens.
    Raises InvalidRequest if the prompts differ in length, or no block has the value.
    """
    if one_of("by", by, ("token", "head")) == "head" and kind == "residual":
        kind = "attention.heads"
    names = layers_with(model, kind)
    source, ids = read(model, clean, [*names.values(), LAST_LOGITS]), model.inputs.prompt(corrupted)
    _refuse_lengths(len(source), len(ids))
    return names, source, ids


def patch_sweep(
    model: TracedModel,
    clean: Any,
    corrupted: Any,
    target: Target,
    *,
    kind: str = "residual",
    by: Literal["token", "head"] = "token",
    told: Told = untold,
) -> Sweep:
    """The effect of each value of the clean run in the corrupted run, by layer and token, or by layer and head.

    Args:
        clean, corrupted: prompts with the same number of tokens.
        target: a function of the logits, such as ``logit_difference(model, " Mary", " John")``.
        kind: the patched value of each block: "residual", "attention.output", "feedforward.output", "attention.heads"
            or another.
        by: "token": all heads or dims at one position; "head": one head at all positions, with ``kind``
            "attention.heads" by default.
        told: called with the number of finished runs and the number of all runs.

    The texts of the tokens (``pieces``) are of the clean prompt.

    Raises:
        InvalidRequest: the prompts differ in length, the targets do not differ, or no block has the value.
    """
    names, source, ids = clean_values(model, clean, corrupted, kind, by)
    count = len(ids)
    # The values before the first different token are equal, so a patch there changes nothing.
    first = next((at for at, pair in enumerate(zip(source.ids, ids)) if pair[0] != pair[1]), count - 1)
    columns = max(model.points[name].heads for name in names.values()) if by == "head" else count

    def patch(layer: int, at: int) -> Edit | None:
        name, values = names[layer], source[names[layer]]
        if by == "token":
            return replace(f"{name}[tokens={at}]", values[at]) if at >= first else None
        if at >= model.points[name].heads:
            return None
        return replace(f"{name}[heads={at}; tokens={first}:{count}]", values[first:, at : at + 1])

    found = sweep(model, corrupted, patch, target, over={"layer": list(names), by: range(columns)}, told=told)
    if by == "token":
        found.values[:, :first] = found.unedited
    effects = found.scaled(found.unedited, target(source["project.logits"][-1]))
    return dataclasses.replace(effects, pieces=source.pieces)


def path_patch(
    model: TracedModel,
    clean: Any,
    corrupted: Any,
    target: Target,
    *,
    receivers: Sequence[str] = (),
    told: Told = untold,
) -> Sweep:
    """The effect of each head on the target along direct paths, by layer and head (Wang et al. 2022).

    A head sends its value of the clean run. All later heads, and all feed-forwards, keep their values of the corrupted
    run, so that only the residual stream carries the change. ``receivers`` are points that receive the change, such as
    "blocks.9.attention.q[heads=9]": the target is measured with the received values, in a run without other changes.
    Without receivers, the logits receive the change.

    Raises: as ``patch_sweep``; InvalidRequest if a receiver is not a point.
    """
    heads = layers_with(model, "attention.heads")
    outputs = [*layers_with(model, "attention.output").values(), *layers_with(model, "feedforward.output").values()]
    source = read(model, clean, [*heads.values(), LAST_LOGITS])
    frozen = read(model, corrupted, [*outputs, *heads.values()])
    _refuse_lengths(len(source), len(frozen))
    last = max((part.point.operation for part in select(model.points, list(receivers))), default=1 << 62)

    def send(layer: int, head: int) -> list[Edit] | None:
        name, count = heads[layer], model.points[heads[layer]].heads
        if head >= count or model.points[name].operation >= last:
            return None
        values = frozen[name].copy()
        values[:, head] = source[name][:, head]
        sender = model.points[name].operation
        kept = [point for point in outputs if sender < model.points[point].operation <= last]
        own = f"blocks.{layer}.attention.output"
        return [replace(name, values), *(replace(point, frozen[point]) for point in kept if point != own)]

    most = max(model.points[name].heads for name in heads.values())
    over = {"layer": list(heads), "head": range(most)}
    if not receivers:
        found = sweep(model, corrupted, send, target, over=over, told=told)
    else:
        found = _through_receivers(model, corrupted, send, target, over, receivers, told)
    return found.scaled(found.unedited, target(source["project.logits"][-1]))


def _through_receivers(
    model: TracedModel,
    corrupted: Any,
    send: Callable[[int, int], list[Edit] | None],
    target: Target,
    over: dict[str, Any],
    receivers: Sequence[str],
    told: Told,
) -> Sweep:
    sent = {
        (layer, head): edits
        for layer in over["layer"]
        for head in over["head"]
        if (edits := send(layer, head)) is not None
    }
    runs = read_copies(model, corrupted, receivers, list(sent.values()))
    received = dict(zip(sent, runs))

    def receive(layer: int, head: int) -> list[Edit] | None:
        if (trace := received.get((layer, head))) is None:
            return None
        return [replace(name, trace[name.partition("[")[0]]) for name in receivers]

    return sweep(model, corrupted, receive, target, over=over, told=told)


def causal_trace(
    model: TracedModel,
    prompt: Any,
    subject: str,
    target: Target,
    *,
    kind: str = "residual",
    window: int = 1,
    noise: float = 3.0,
    samples: int = 10,
    seed: int = 0,
    told: Told = untold,
) -> Sweep:
    """How far each value of the clean run restores the target of a run with a noised subject (Meng et al. 2022).

    The embeddings of the subject's tokens get Gaussian noise. In each run, ``kind`` of ``window`` consecutive blocks is
    restored at one token. The effect is the mean over ``samples`` draws of noise, from the noised run (0) to the clean
    run (1).

    Args:
        subject: a text of the prompt, such as " Space Needle".
        noise: the standard deviation of the noise, in standard deviations of the embeddings of the prompt.
        seed: the seed of the noise.

    Raises: as ``patch_sweep``; InvalidRequest if the subject does not occur in the prompt.
    """
    window, samples = whole("window", window, 1, len(model.spec.blocks)), whole("samples", samples, 1, 1000)
    names = layers_with(model, kind)
    source = read(model, prompt, [*names.values(), "embed", LAST_LOGITS])
    place = f"embed[tokens={json.dumps(text('subject', subject), ensure_ascii=False)}]"
    texts = TokenTexts(source.ids, model.tokenizer.piece)
    rows = len(select(model.points, [place])[0].resolve(texts, None).tokens)
    random, width = np.random.default_rng(seed), model.spec.embedding.width
    sigma, layers = noise * float(source["embed"].std()), list(names)
    clean = target(source["project.logits"][-1])

    def restore(layer: int, at: int) -> list[Edit]:
        own = layers_around(layers, layer, window)
        return [replace(f"{names[one]}[tokens={at}]", source[names[one]][at]) for one in own]

    found, total = list[Sweep](), len(layers) * len(source) * samples
    for number in range(samples):

        def told_of(done: int, own: int, before: int = number) -> None:
            told(before * own + done, total)

        noised = add(place, sigma * random.standard_normal((rows, width)).astype(np.float32))
        over = {"layer": layers, "token": range(len(source))}
        one = sweep(model, prompt, restore, target, over=over, edits=[noised], told=told_of)
        found.append(one)
    mean = np.mean([one.values for one in found], 0), float(np.mean([one.unedited for one in found]))
    whole_run = Sweep(mean[0], found[0].axes, mean[1], found[0].pieces)
    return whole_run.scaled(whole_run.unedited, clean)


def _refuse_lengths(clean: int, corrupted: int) -> None:
    if clean != corrupted:
        raise InvalidRequest(f"clean has {clean} tokens, corrupted {corrupted}: patching needs prompts of equal length")


# Ablation and attention knock-out: a target without a part of the model, or without an edge of attention.


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
    columns = {"head": max(model.points[name].heads for name in names.values()), "token": count, "layer": 1}[by]
    if not columns:
        raise InvalidRequest(f"kind={kind}: it has no heads: sweep by token or by layer")

    def without(layer: int, at: int = 0) -> Edit | None:
        name, own = names[layer], instead.get(layer)
        if by == "head" and at >= model.points[name].heads:
            return None
        where = {"head": f"[heads={at}; tokens=:{count}]", "token": f"[tokens={at}]", "layer": f"[tokens=:{count}]"}[by]
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
    model: TracedModel, prompt: Any, target: Target, *, query: int | str = -1, window: int = 1, told: Told = untold
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
