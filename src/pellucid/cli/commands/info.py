"""pellucid info MODEL: facts about a model, or the machine. pellucid points MODEL: the points to trace and edit."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from pellucid.cli import common
from pellucid.cli.command import command
from pellucid.cli.commands.models import facts_of
from pellucid.cli.options import PreciseLoading
from pellucid.errors import InvalidRequest

if TYPE_CHECKING:
    from pellucid.model.spec import FeedForward, Mixture, ModelSpec


@command("info")
def info_command(
    model: str | None = common.argument("MODEL", "A model, as in `pellucid run`."),
    machine: bool = common.flag("--machine", "Describe the machine that kernels run on."),
    json: common.Json = False,
) -> None:
    """Show facts about a model: its layers, its file, its tokenizer and its origin. No weights are loaded.

    For a model of the catalogue that is not on this machine, only its origin is shown. Nothing is downloaded.
    """
    if (model is not None) == machine:
        raise InvalidRequest("info takes a model or --machine")
    if model is None:
        from pellucid.measure.roofs import facts as machine_facts

        facts = machine_facts()
    else:
        facts = _model(model)
    if json:
        common.print_json(facts)
        return
    common.print_facts(facts)


def _feedforward(kind: FeedForward | Mixture) -> str:
    from pellucid.model.describe import feedforward
    from pellucid.model.spec import FeedForward

    if isinstance(kind, FeedForward):
        return f"{kind.width}, {feedforward(kind)}"
    shared = f", and a shared one of {kind.shared.width}" if kind.shared else ""
    return f"{kind.router.chosen} of {kind.router.experts} experts of {_feedforward(kind.expert)}{shared}"


def _layers(spec: ModelSpec) -> dict[str, str]:
    """Facts about the attention, the recurrent layers and the feed-forward that a model has."""
    from pellucid.model.describe import recurrent as kind_of
    from pellucid.model.spec import Mixture

    facts = {}
    recurrent = [block.recurrent for block in spec.blocks if block.recurrent]
    if spec.attentions:
        attention, window = spec.attention, max(layer.window for layer in spec.attentions)
        of_chunk = any(layer.chunked for layer in spec.attentions)
        seen = f"their own chunk of {window} tokens" if of_chunk else f"{window} tokens back"
        seen = seen if attention.causal else f"{window - 1} tokens to each side"
        sharing = sum(layer.shared is not None for layer in spec.attentions)
        facts["attention"] = (
            (f"in {len(spec.attentions)} blocks, " if len(spec.attentions) < len(spec.blocks) else "")
            + f"{attention.heads} heads of {attention.head_dim}, {attention.kv_heads} for keys and values"
            + (f", some see only {seen}" if window else "")
            + (f", {sharing} blocks use the keys and values of earlier blocks" if sharing else "")
            + ("" if attention.causal else ", bidirectional")
        )
    if recurrent:
        facts["recurrent"] = f"in {len(recurrent)} blocks, {kind_of(recurrent[0])}"
    if spec.altup:
        facts["residual"] = f"{spec.altup.streams} streams, each block changes one of them"
    if spec.per_layer:
        facts["per layer"] = f"embeddings of {spec.per_layer.width} for each block"
    deciding = spec.decision.count if spec.decision else 0
    own = spec.blocks[: len(spec.blocks) - deciding]
    kinds = [block.feedforward for block in own if block.feedforward]
    mixtures = [kind for kind in kinds if isinstance(kind, Mixture)]
    if kinds:
        facts["feed-forward"] = _feedforward((mixtures or kinds)[-1])
        if mixtures and len(mixtures) < len(kinds):
            facts["feed-forward"] += f", in {len(mixtures)} of {len(spec.blocks)} blocks"
    if deciding and (last := spec.blocks[-1].feedforward):
        facts["decision"] = f"the last {deciding} blocks, feed-forward {_feedforward(last)}"
    elif spec.task == "decide":
        facts["decision"] = "a head of its own scores labels" if spec.head else "a head of its own scores options"
    return facts


def _model(name: str) -> dict[str, Any]:
    from pellucid.model.read import read_model
    from pellucid.sample.recommended import recommended
    from pellucid.tokenize import load_tokenizer
    from pellucid.tokenize.load import why_base
    from pellucid.weights.catalogue import find
    from pellucid.weights.checkpoint import parameter_count, stored_bytes
    from pellucid.weights.store import installed

    known = find(name)
    if known is not None and not any(model.name == known.name and model.complete for model in installed()):
        return {
            "name": known.name,
            "description": known.description,
            **facts_of(known),
            "here": f"no: pellucid pull {known.name}",
        }
    checkpoint = common.opened(name)
    spec = read_model(checkpoint).spec
    tokenizer = load_tokenizer(checkpoint)
    block, formats = spec.blocks[0], Counter(t.format for t in checkpoint.tensors.values())
    ends = " or ".join(tokenizer.token_text(token) for token in sorted(tokenizer.eos_ids))
    parameters, base = parameter_count(checkpoint), why_base(checkpoint, tokenizer)
    return {
        "name": spec.name,
        **(facts_of(known) if known else {}),
        "family": spec.family,
        "path": str(checkpoint.path),
        "file": f"{checkpoint.kind}, {stored_bytes(checkpoint) / 1e6:.0f} MB, "
        + ", ".join(f"{count} {form}" for form, count in formats.most_common()),
        "parameters": f"{parameters / 1e6:.1f} million",
        "context": spec.context,
        **({"longest context": spec.max_context} if spec.max_context > spec.context else {}),
        "width": spec.embedding.width,
        **({"embedding": f"{spec.embedding.narrow}, widened"} if spec.embedding.narrow else {}),
        "vocabulary": spec.embedding.vocabulary,
        **({"encoder": f"{len(spec.encoder.blocks)} blocks"} if spec.encoder else {}),
        "blocks": f"{len(spec.blocks)} in the decoder" if spec.encoder else len(spec.blocks),
        "sampling": ", ".join(
            f"{name} {value:g}" if isinstance(value, (int, float)) else f"{name} {value}"
            for name, value in recommended(checkpoint, sources=spec.encoder is not None).items()
        )
        or "the usual defaults",
        **_layers(spec),
        "norm": f"{block.norm.kind}, {block.placement}",
        "tokenizer": f"{tokenizer.vocab_size:,} tokens" + (f", a text ends with {ends}" if ends else ""),
        "chat template": "yes" if tokenizer.chat_template else "no",
        **({"tuning": f"base, because {base}" if base else "instruct"} if spec.generates else {}),
    }


@command("points")
def points_command(
    model: common.Model,
    name: str | None = common.argument("NAME", "Only points with this name; * matches any part: blocks.*.residual."),
    whole: bool = common.flag("--all", "Show every block, even if it equals an earlier block."),
    *,
    options: PreciseLoading,
    json: common.Json = False,
) -> None:
    """Show the values of a run that can be traced and edited, in the order of the pipeline. No weights are loaded.

    The letters of a shape are: B sequences, T tokens, D width, H heads, G key/value heads, K and V widths of a head's
    key and value, F neurons, E experts, C chosen experts, L layers, P width of a layer's embedding.
    """
    from pellucid.model.read import read_model
    from pellucid.trace.output_points import all_points
    from pellucid.trace.selection import select

    generates = read_model(common.opened(model)).spec.generates
    points = all_points(common.plan(model, options), generates=generates)
    selected = [match.point for match in select(points, [name])] if name is not None else list(points.values())
    rows = [
        {"name": point.name, "shape": point.shape, "dtype": point.dtype, "unit": point.unit, "about": point.about}
        for point in selected
    ]
    shown = rows if whole or name is not None else _shortened(rows)
    values = [tuple(row.values()) for row in shown]
    common.print_table("|point", "|shape", "type", "unit", "what it is", rows=values, json=json and rows)


def _shortened(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without the blocks that equal an earlier block, separately for the encoder of an encoder-decoder."""
    from pellucid.model.shapes import ENCODER

    encoder = [{**row, "name": row["name"].removeprefix(ENCODER)} for row in rows if row["name"].startswith(ENCODER)]
    others = [row for row in rows if not row["name"].startswith(ENCODER)]
    of_encoder = [{**row, "name": ENCODER + row["name"]} for row in _first_of_each(encoder)]
    return [*of_encoder, *_first_of_each(others)]


def _first_of_each(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without the blocks that equal an earlier block. The first block of a kind stands for all equal blocks."""
    blocks: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        parts = row["name"].split(".")
        if parts[0] == "blocks":
            blocks.setdefault(parts[1], []).append(row)
    first: dict[Any, str] = {}
    alike: dict[str, list[int]] = {}
    for block, own in blocks.items():
        key = tuple((row["name"].partition(".")[2].partition(".")[2], row["shape"]) for row in own)
        alike.setdefault(first.setdefault(key, block), []).append(int(block))
    first_rows = []
    for row in rows:
        parts = row["name"].split(".")
        if parts[0] != "blocks":
            first_rows.append(row)
        elif parts[1] in alike:
            numbers = alike[parts[1]]
            which = f"{{{_ranges(numbers)}}}" if len(numbers) > 1 else parts[1]
            first_rows.append({**row, "name": f"blocks.{which}.{'.'.join(parts[2:])}"})
    return first_rows


def _ranges(numbers: list[int]) -> str:
    """Numbers as text, with ranges for consecutive numbers: "0-3,5"."""
    from pellucid.trace.selection import runs_of

    return ",".join(str(first) if count == 1 else f"{first}-{first + count - 1}" for first, count in runs_of(numbers))
