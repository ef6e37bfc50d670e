"""Queries about a model, which the page sends: each runs here or on a replica, by the last part of its path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pellucid.llm import LLM
from pellucid.serve.look import explanations as explain
from pellucid.serve.look.beam_tree import BeamsFields, beams
from pellucid.serve.look.model_facts import FactsFields, model_facts
from pellucid.serve.look.running_model import ProfileFields, profile
from pellucid.serve.request_body import BodyType, F, RequestBody


@dataclass(frozen=True)
class ModelQuery:
    """A query: its ``summary``, its ``body``, and the function that computes the response in a thread."""

    summary: str
    body: BodyType[Any]
    run: Callable[[RequestBody[Any], LLM], dict[str, Any]]


def _query(summary: str, fields: type[F], run: Callable[[RequestBody[F], LLM], dict[str, Any]]) -> ModelQuery:
    return ModelQuery(summary, BodyType(fields, required=()), run)


QUERIES: Mapping[str, ModelQuery] = {
    "models": _query("The shape of a model, and its points.", FactsFields, model_facts),
    "lens": _query("What the model would say after each block.", explain.LensFields, explain.lens),
    "beams": _query("A beam search, with the tree of all candidates.", BeamsFields, beams),
    "profile": _query(
        "The times of a step's operations beside what the machine can do.", ProfileFields, profile
    ),
    "attribution": _query(
        "What each part adds to the logit of a token.", explain.AttributionFields, explain.attribution
    ),
    "neighbours": _query(
        "The nearest tokens of tokens, or of words.", explain.NeighboursFields, explain.neighbours
    ),
    "pieces": _query("The texts of tokens.", explain.PiecesFields, explain.pieces),
    "tokenize": _query("How a text becomes tokens.", explain.TextTokenizeFields, explain.tokenization),
}
"""``TraceReading`` is not here, because it is cancelled with its client."""
