"""Queries about a model, which the page sends: each runs here or on a replica, by the last part of its path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pellucid.llm import LLM
from pellucid.serve.look.beam_tree import BEAMS, beams
from pellucid.serve.look.explanations import (
    ATTRIBUTION,
    LENS,
    NEIGHBOURS,
    PIECES,
    TEXT_TOKENIZE,
    attribution,
    lens,
    neighbours,
    pieces,
    tokenization,
)
from pellucid.serve.look.model_facts import FACTS, model_facts
from pellucid.serve.look.running_model import PROFILE, profile
from pellucid.serve.request_body import BodyType, RequestBody


@dataclass(frozen=True)
class ModelQuery:
    """A query: its body, and the function that computes the response in a thread."""

    body: BodyType[Any]
    run: Callable[[RequestBody[Any], LLM], dict[str, Any]]


QUERIES: Mapping[str, ModelQuery] = {
    "models": ModelQuery(FACTS, model_facts),
    "lens": ModelQuery(LENS, lens),
    "beams": ModelQuery(BEAMS, beams),
    "profile": ModelQuery(PROFILE, profile),
    "attribution": ModelQuery(ATTRIBUTION, attribution),
    "neighbours": ModelQuery(NEIGHBOURS, neighbours),
    "pieces": ModelQuery(PIECES, pieces),
    "tokenize": ModelQuery(TEXT_TOKENIZE, tokenization),
}
"""``TraceReading`` is not here, because it is cancelled with its client."""
