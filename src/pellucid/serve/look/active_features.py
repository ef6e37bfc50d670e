"""POST /look/features: the features of a server's dictionary that are active at the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta

from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.serve.look.edit_fields import dictionary_of, edits_of
from pellucid.serve.look.prompt_fields import PromptFields, prompt_of
from pellucid.serve.request_body import RequestBody
from pellucid.trace.dictionaries.dictionary import Dictionary
from pellucid.trace.lenses.features import features
from pellucid.trace.traced_model import read

MAX_TOKENS = 2048


class FeaturesFields(PromptFields, frozen=True, kw_only=True):
    """Fields of /look/features: the name of a ``dictionary``, and the number ``top`` of features of each token."""

    dictionary: str
    top: Annotated[int, Meta(ge=1, le=100)] = 10


def active_features(body: RequestBody[FeaturesFields], llm: LLM) -> dict[str, Any]:
    """The features with the highest activations at each token, and the explained variance of each point."""
    fields, prompt, edits = body.fields, prompt_of(body, llm), edits_of(body.fields.edits, llm)
    dictionary = dictionary_of("dictionary", fields.dictionary, llm)
    if len(prompt.read) > MAX_TOKENS:
        raise InvalidRequest(f"prompt has {len(prompt.read):,} tokens; the limit is {MAX_TOKENS:,} here")
    points = [own.name for coder in dictionary.coders.values() for own in (coder.reads, coder.writes[0])]
    table = features(llm, read(llm, prompt.ids, points, edits, answer=prompt.answer), dictionary)
    return {
        "dictionary": described(dictionary),
        "pieces": table.pieces,
        "features": [
            [
                {"layer": own.layer, "feature": own.feature, "activation": own.activation}
                for own in table.top(position, fields.top)
            ]
            for position in range(len(table.pieces))
        ],
        "explained_variance": table.explained(),
    }


def described(dictionary: Dictionary) -> Mapping[str, Any]:
    """Facts about a dictionary."""
    coders = dictionary.coders
    return {
        "kind": dictionary.kind,
        "layers": {
            str(layer): {
                "features": coder.features,
                "activation": coder.activation,
                "reads": coder.reads.name,
                "writes": [own.name for own in coder.writes],
            }
            for layer, coder in coders.items()
        },
    }
