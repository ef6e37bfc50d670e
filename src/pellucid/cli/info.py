"""pellucid info MODEL: what a model is; pellucid info --machine: what it runs on."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

import typer

from pellucid.cli import common


def command(
    model: Annotated[
        str | None, typer.Argument(help="As for run.", metavar="MODEL", show_default=False)
    ] = None,
    machine: Annotated[bool, typer.Option("--machine", help="What the kernels run on instead.")] = False,
    json: common.Json = False,
) -> None:
    """What a model is: its parts, its file, its tokenizer. Nothing is loaded."""
    from pellucid.errors import InvalidRequest

    if (model is not None) == machine:
        raise InvalidRequest("info takes a model or --machine")
    facts = _machine() if model is None else _model(model)
    if json:
        common.print_json(facts)
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        text = f"{value:,}" if isinstance(value, int) else common.one_line(value)
        print(f"{name:<{width}}  {text}")


def _machine() -> dict[str, Any]:
    from importlib.metadata import version

    from llvmlite import binding

    from pellucid.kernels import isa
    from pellucid.kernels.library import cache_folder
    from pellucid.runtime.executor import default_threads

    chosen = isa.choose()
    possible = [known.name for known in isa.KNOWN if known.needs <= isa.host_features()]
    return {
        "cpu": binding.get_host_cpu_name(),
        "instructions": f"{chosen.name} ({chosen.description})",
        "possible": ", ".join(possible),
        "threads": default_threads(),
        "kernels": str(cache_folder()),
        "numba": version("numba"),
        "llvmlite": version("llvmlite"),
    }


def _model(name: str) -> dict[str, Any]:
    from pellucid.model import read_model
    from pellucid.tokenize import load_tokenizer
    from pellucid.weights.open import open_checkpoint
    from pellucid.weights.store import resolve

    with common.progress() as bars:
        checkpoint = open_checkpoint(resolve(name, progress=bars))
    spec = read_model(checkpoint).spec
    tokenizer = load_tokenizer(checkpoint)
    block, formats = spec.blocks[0], Counter(t.format for t in checkpoint.tensors.values())
    attention, feedforward = block.attention, block.feedforward
    window = {b.attention.window for b in spec.blocks} - {0}
    ends = " or ".join(tokenizer.token_text(token) for token in sorted(tokenizer.eos_ids))
    parameters = sum(_count(t.shape) for t in checkpoint.tensors.values())
    return {
        "name": spec.name,
        "family": spec.family,
        "path": str(checkpoint.path),
        "file": f"{checkpoint.kind}, {sum(t.nbytes for t in checkpoint.tensors.values()) / 1e6:.0f} MB, "
        + ", ".join(f"{count} {form}" for form, count in formats.most_common()),
        "parameters": f"{parameters / 1e6:.1f} million",
        "context": spec.context,
        "width": spec.embedding.width,
        "vocabulary": spec.embedding.vocabulary,
        "blocks": len(spec.blocks),
        "attention": f"{attention.heads} heads of {attention.head_dim}, {attention.kv_heads} for keys and values"
        + (f", some see only {max(window)} tokens back" if window else "")
        + ("" if attention.causal else ", bidirectional"),
        "feed-forward": f"{feedforward.width}, {'gated ' if feedforward.gated else ''}{feedforward.activation}",
        "norm": f"{block.norm.kind}, {block.placement}",
        "tokenizer": f"{tokenizer.vocab_size:,} tokens" + (f", a text ends with {ends}" if ends else ""),
        "chat template": "yes" if tokenizer.chat_template else "no",
    }


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for dimension in shape:
        total *= dimension
    return total
