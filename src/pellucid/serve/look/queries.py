"""Queries of the page about a model, by the last part of their path. They run in this process or on a replica."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pellucid.llm import LLM
from pellucid.serve.look import explanations as explain
from pellucid.serve.look.explanations import BeamsFields, FeaturesFields, GraphFields, active_features, beams, graph
from pellucid.serve.look.model_facts import FactsFields, ProfileFields, model_facts, profile
from pellucid.serve.look.weight_rows import WeightsFields, weights
from pellucid.serve.request_body import BodyType, F, RequestBody


@dataclass(frozen=True)
class ModelQuery:
    """A query: its ``summary``, its ``body``, and the function that computes the response in a thread."""

    summary: str
    body: BodyType[Any]
    run: Callable[[RequestBody[Any], LLM], dict[str, Any]]


def _query(summary: str, fields: type[F], run: Callable[[RequestBody[F], LLM], dict[str, Any]]) -> ModelQuery:
    return ModelQuery(summary, BodyType(fields), run)


QUERIES: Mapping[str, ModelQuery] = {
    "models": _query("The shape of a model, and its hook points.", FactsFields, model_facts),
    "lens": _query("Predictions after each block (logit lens).", explain.LensFields, explain.lens),
    "features": _query(
        "The active features of a dictionary at each token of a prompt.", FeaturesFields, active_features
    ),
    "beams": _query("A beam search, with the tree of all candidates.", BeamsFields, beams),
    "profile": _query("The times of a step's operations beside the limits of the machine.", ProfileFields, profile),
    "attribution": _query(
        "Contribution of each part to the logit of a token.", explain.AttributionFields, explain.attribution
    ),
    "graph": _query("Attribution graph of the next token, in Neuronpedia's format.", GraphFields, graph),
    "neighbours": _query("The nearest tokens of token ids or words.", explain.NeighboursFields, explain.neighbours),
    "weights": _query(
        "The weights of one number of a point, and the input that they multiply.", WeightsFields, weights
    ),
    "pieces": _query("The texts of tokens.", explain.PiecesFields, explain.pieces),
    "tokenize": _query("Tokenization of a text, stage by stage.", explain.TextTokenizeFields, explain.tokenization),
}
"""``TraceReading`` is not a query, because it is cancelled when its client disconnects."""
