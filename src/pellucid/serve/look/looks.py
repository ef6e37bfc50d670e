"""Functions that answer the page's requests about a model, here or on a replica, by the last part of the path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pellucid.llm import LLM
from pellucid.serve.body import Body
from pellucid.serve.look.models import described
from pellucid.serve.look.reading import attribution, lens, near, pieces, tokenization
from pellucid.serve.look.running import profile
from pellucid.serve.look.searching import beams

LOOKS: Mapping[str, Callable[[Body, LLM], dict[str, Any]]] = {
    "models": described,
    "lens": lens,
    "beams": beams,
    "profile": profile,
    "attribution": attribution,
    "neighbours": near,
    "pieces": pieces,
    "tokenize": tokenization,
}
"""Each function runs in a thread to its end. ``TraceReading`` is not here, because it is cancelled with its client."""
