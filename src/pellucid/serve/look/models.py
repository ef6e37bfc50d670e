"""GET /look/models: the models of the server, and what the page must know of one that is looked at."""

from __future__ import annotations

from typing import Any

from pellucid.llm import LLM
from pellucid.model.positions import Rotary
from pellucid.model.spec import Mixture
from pellucid.plan.plan import DistanceTable
from pellucid.sample.step import steps
from pellucid.serve.model import ServedModel, in_process


def described(name: str, model: ServedModel) -> dict[str, Any]:
    """A model's shape, its points, and its chain's steps."""
    llm = in_process(model)
    spec, points = llm.spec, llm.points
    return {
        "name": name,
        "model": spec.name,
        "family": spec.family,
        "generates": spec.head is not None,
        "chat": llm.tokenizer.chat_template is not None,
        "context": llm.context,
        "vocabulary": llm.inputs.vocabulary,
        "width": spec.embedding.width,
        "threads": llm.runner.threads,
        "position": _position(llm),
        "slopes": _slopes(llm),
        "blocks": [
            {
                "heads": block.attention.heads if block.attention else 0,
                "mixture": isinstance(block.feedforward, Mixture),
                "recurrent": any(one.startswith(f"blocks.{layer}.recurrent") for one in points),
            }
            for layer, block in enumerate(spec.blocks)
        ],
        "recommended": llm.recommended,
        "steps": list(steps()),
        "points": {
            one.name: {
                "shape": one.shape,
                "dtype": one.dtype,
                "unit": one.unit,
                "about": one.about,
                "kind": one.kind,
            }
            for one in points.values()
        },
    }


def _position(llm: LLM) -> str:
    """How the model knows positions: "rotary", "added", "alibi" or "none"."""
    spec = llm.spec
    if any(isinstance(one.rotary, Rotary) for one in spec.attentions):
        return "rotary"
    if spec.position is not None:
        return "added"
    return "alibi" if any(one.alibi for one in spec.attentions) else "none"


def _slopes(llm: LLM) -> list[float]:
    """How much the score of each head falls per token of distance (ALiBi); empty where scores do not fall."""
    tables = llm.runner.plan.tables.values()
    return next((list(one.slopes) for one in tables if isinstance(one, DistanceTable)), [])
