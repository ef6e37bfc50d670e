"""/embed, /embed_all, /embed_sparse: vectors of texts. /similarity: the cosines of a text and others."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from pellucid.encoders.embedding import embed, sparse, token_vectors
from pellucid.encoders.model import EncoderModel
from pellucid.encoders.ranking import similarity_of_rows
from pellucid.serve.encoder_inputs import check_task, encoded_texts, listed_inputs, prompt_of_name, truncating
from pellucid.serve.request_body import (
    BodyType,
    Fields,
    ModelFields,
    RequestBody,
    TruncationSide,
    listed_texts,
    side_of,
)
from pellucid.serve.served_model import ServedModel
from pellucid.serve.tei.tei_fields import TeiEmbeddingFields, VectorInputFields
from pellucid.serve.vector_formats import of_unit_length


class ComparedTexts(Fields, frozen=True):
    """A text, and the texts that are compared with it."""

    source_sentence: str
    sentences: Annotated[list[str], Meta(min_length=1)]


class SimilarityParameters(Fields, frozen=True, kw_only=True):
    """Parameters of /similarity."""

    truncate: bool = False
    truncation_direction: TruncationSide = "Right"
    prompt_name: str | None = None


class SimilarityFields(ModelFields, frozen=True, kw_only=True):
    """Fields of /similarity."""

    inputs: ComparedTexts
    parameters: SimilarityParameters = SimilarityParameters()


EMBED = BodyType(TeiEmbeddingFields)
EMBED_OTHERS = BodyType(VectorInputFields)
SIMILARITY = BodyType(SimilarityFields)


def embedded(body: RequestBody[TeiEmbeddingFields], llm: ServedModel, name: str, number: str) -> list[Any]:
    """Response body of /embed: a vector for each text."""
    return vectors_of(body.fields, llm)


def vectors_of(fields: TeiEmbeddingFields, llm: EncoderModel) -> list[Any]:
    """The vectors of the texts of a request, as lists."""
    check_task(llm, "embed")
    vectors = embed(llm, _encoded(fields, llm), fields.dimensions)
    return list(of_unit_length(llm, vectors, "normalize", fields.normalize).tolist())


def embedded_all(body: RequestBody[VectorInputFields], llm: ServedModel, name: str, number: str) -> list[Any]:
    """Response body of /embed_all: for each text the vectors of its tokens."""
    return token_vectors_of(body.fields, llm)


def token_vectors_of(fields: VectorInputFields, llm: EncoderModel) -> list[Any]:
    """The vectors of the tokens of each text of a request, as lists."""
    check_task(llm, "tokens")
    return [one.tolist() for one in token_vectors(llm, _encoded(fields, llm))]


def embedded_sparse(
    body: RequestBody[VectorInputFields], llm: ServedModel, name: str, number: str
) -> list[Any]:
    """Response body of /embed_sparse: for each text its token ids with a weight."""
    return sparse_vectors_of(body.fields, llm)


def sparse_vectors_of(fields: VectorInputFields, llm: EncoderModel) -> list[Any]:
    """The sparse vectors of the texts of a request, as lists of indices and values."""
    check_task(llm, "sparse")
    found = sparse(llm, _encoded(fields, llm))
    return [[{"index": token, "value": value} for token, value in one.items()] for one in found]


def _encoded(fields: VectorInputFields, llm: EncoderModel) -> list[list[int]]:
    texts, prompt = listed_inputs("inputs", fields.inputs), prompt_of_name(llm, fields.prompt_name)
    return encoded_texts(fields.on(llm), texts, fields.truncate, prompt)


def similarities(body: RequestBody[SimilarityFields], llm: ServedModel, name: str, number: str) -> list[Any]:
    """Response body of /similarity: the cosine of each sentence and the source."""
    inputs, parameters = body.fields.inputs, body.fields.parameters
    check_task(llm, "embed")
    texts = [inputs.source_sentence, *listed_texts("inputs.sentences", inputs.sentences)]
    model = truncating(llm, side=side_of(parameters.truncation_direction))
    prompt = prompt_of_name(llm, parameters.prompt_name)
    vectors = embed(llm, encoded_texts(model, texts, parameters.truncate, prompt))
    return similarity_of_rows(np.broadcast_to(vectors[0], vectors[1:].shape), vectors[1:])
