"""/v1/embed and /v2/embed: vectors of texts, in several number formats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta

from pellucid.encoders.embedding import embed
from pellucid.errors import InvalidRequest
from pellucid.serve.cohere.meta import meta
from pellucid.serve.encoder_inputs import check_task, encoded_texts, prompt_of_purpose, truncating
from pellucid.serve.request_body import (
    BodyRules,
    BodyType,
    Count,
    Fields,
    ModelFields,
    RequestBody,
    listed_texts,
)
from pellucid.serve.served_model import ServedModel
from pellucid.serve.vector_formats import VectorFormat, formatted

InputType = Literal["search_document", "search_query", "classification", "clustering", "image"]
Formats = Annotated[list[VectorFormat], Meta(min_length=1, max_length=6)]


class EmbeddedText(Fields, frozen=True, kw_only=True):
    """A part of an input with several parts."""

    type: Literal["text"]
    text: str


class PartedInput(Fields, frozen=True):
    """An input of /v2/embed, in parts."""

    content: Annotated[list[EmbeddedText], Meta(min_length=1)]


class CohereEmbeddingFields(ModelFields, frozen=True, kw_only=True):
    """Fields of /v1/embed."""

    texts: list[str] | None = None
    input_type: InputType | None = None
    embedding_types: Formats | None = None
    truncate: Literal["NONE", "START", "END"] = "END"


class CohereEmbeddingFieldsV2(CohereEmbeddingFields, frozen=True, kw_only=True):
    """Fields of /v2/embed."""

    inputs: list[PartedInput] | None = None
    max_tokens: Count | None = None
    output_dimension: Count | None = None


RULES = BodyRules(only={"images": []})
EMBED_V1 = BodyType(CohereEmbeddingFields, RULES)
EMBED_V2 = BodyType(CohereEmbeddingFieldsV2, RULES, required=("input_type",))


def embedded_v1(
    body: RequestBody[CohereEmbeddingFields], llm: ServedModel, name: str, number: str
) -> dict[str, Any]:
    """Response body of /v1/embed: a list of vectors, or lists by format if the request names formats."""
    fields = body.fields
    return _response(fields, llm, number, fields.texts or (), None, None, 1)


def embedded_v2(
    body: RequestBody[CohereEmbeddingFieldsV2], llm: ServedModel, name: str, number: str
) -> dict[str, Any]:
    """Response body of /v2/embed: lists of vectors by format."""
    fields = body.fields
    if fields.input_type is None:
        raise InvalidRequest("input_type is missing: the request must have it")
    if fields.texts and fields.inputs:
        raise InvalidRequest("texts and inputs are two forms of one field: remove one of the two")
    texts = fields.texts or ["\n".join(part.text for part in one.content) for one in fields.inputs or ()]
    return _response(fields, llm, number, texts, fields.max_tokens, fields.output_dimension, 2)


def _response(
    fields: CohereEmbeddingFields,
    llm: ServedModel,
    number: str,
    texts: Sequence[str],
    limit: int | None,
    width: int | None,
    version: int,
) -> dict[str, Any]:
    if fields.input_type == "image":
        raise InvalidRequest("input_type='image': the server embeds texts only")
    if not texts:
        raise InvalidRequest("texts is missing: the request must have at least one text")
    check_task(llm, "embed")
    model = truncating(llm, limit, "left" if fields.truncate == "START" else "right")
    prompt = prompt_of_purpose(model, fields.input_type)
    encoded = encoded_texts(model, listed_texts("texts", texts), fields.truncate != "NONE", prompt)
    vectors, tokens = embed(model, encoded, width), sum(map(len, encoded))
    forms: Sequence[VectorFormat] = fields.embedding_types or ("float",)
    found = {one: formatted(vectors, one) for one in forms}
    by_type = version == 2 or fields.embedding_types is not None
    return {
        "id": f"embed-{number}",
        "embeddings": found if by_type else found["float"],
        "texts": list(texts),
        "meta": meta(version, tokens, input_tokens=tokens),
        "response_type": "embeddings_by_type" if by_type else "embeddings_floats",
    }
