"""/v1/embeddings: sentence vectors of texts or token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from pellucid.encoders.embedding import embed, vector_width
from pellucid.engine.request import Request
from pellucid.errors import InvalidRequest
from pellucid.serve.encoder_inputs import (
    check_task,
    encoded_texts,
    listed_inputs,
    prompt_of_name,
    prompt_of_purpose,
    truncating,
)
from pellucid.serve.request_body import (
    BodyRules,
    BodyType,
    Count,
    Fields,
    ModelFields,
    RequestBody,
    TokenId,
    TokenLimit,
)
from pellucid.serve.served_model import ServedModel
from pellucid.serve.vector_formats import VectorFormat, formatted, of_unit_length


class TextObject(Fields, frozen=True):
    """A text in Jina's form."""

    text: str


TextInputs = Annotated[
    str | list[str | TokenId | list[TokenId] | TextObject],
    Meta(title="a text, token ids, or a list of these"),
]


class EmbeddingFields(ModelFields, frozen=True, kw_only=True):
    """Fields of an embedding request.

    The prompt before each text is named by ``prompt_name``, or by its purpose: ``input_type`` (vLLM, Cohere, Voyage) or
    ``task`` (Jina). ``encoding_format`` (OpenAI) and ``embedding_type`` (Jina) are names of one field.
    """

    input: TextInputs
    encoding_format: Literal["float", "base64"] | None = None
    embedding_type: VectorFormat | None = None
    dimensions: Count | None = None
    prompt_name: str | None = None
    input_type: str | None = None
    task: str | None = None
    truncate: bool = False
    truncate_prompt_tokens: TokenLimit | None = None
    normalized: bool | None = None


EMBEDDING = BodyType(
    EmbeddingFields,
    BodyRules(ignored=frozenset({"user"}), only={"late_chunking": False, "return_multivector": False}),
)


@dataclass(frozen=True)
class EmbeddingRequest:
    """A request for the vectors of ``encoded`` texts, each with ``width`` components in the number format ``form``."""

    fields: EmbeddingFields
    encoded: Sequence[list[int]]
    width: int
    form: VectorFormat
    llm: ServedModel
    groups: Sequence[Request] = ()  # nothing is generated

    @classmethod
    def of(cls, body: RequestBody[EmbeddingFields], llm: ServedModel) -> EmbeddingRequest:
        """Read a body.

        Raises:
            InvalidRequest: a field is wrong; the message names it.
            ContextOverflow: a text is too long for the model.
        """
        check_task(llm, "embed")
        fields = body.fields
        truncate = fields.truncate or fields.truncate_prompt_tokens is not None
        encoded = encoded_texts(
            truncating(llm, fields.truncate_prompt_tokens),
            listed_inputs("input", fields.input),
            truncate,
            _prompt(llm, fields),
        )
        return cls(fields, encoded, vector_width(llm, fields.dimensions), _form(fields), llm)

    def answer(self, name: str, number: str) -> dict[str, Any]:
        """Compute the vectors and return the response body of the model ``name``."""
        fields = self.fields
        vectors = of_unit_length(
            self.llm, embed(self.llm, self.encoded, self.width), "normalized", fields.normalized
        )
        tokens = sum(map(len, self.encoded))
        return {
            "object": "list",
            "model": name,
            "data": [
                {"object": "embedding", "index": at, "embedding": vector}
                for at, vector in enumerate(formatted(vectors, self.form))
            ],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }


def _form(fields: EmbeddingFields) -> VectorFormat:
    if fields.encoding_format and fields.embedding_type:
        raise InvalidRequest(
            "encoding_format and embedding_type are names of one field: remove one of the two"
        )
    return fields.embedding_type or fields.encoding_format or "float"


def _prompt(llm: ServedModel, fields: EmbeddingFields) -> str:
    """The name of the prompt that a request asks for; "": the default prompt."""
    given = [one for one in ("prompt_name", "input_type", "task") if getattr(fields, one)]
    if len(given) > 1:
        raise InvalidRequest(f"{given[0]} and {given[1]} both choose the prompt: remove one of the two")
    return prompt_of_name(llm, fields.prompt_name) or prompt_of_purpose(llm, fields.input_type or fields.task)


def embeddings(
    body: RequestBody[EmbeddingFields], llm: ServedModel, name: str, number: str
) -> dict[str, Any]:
    """Response body of /v1/embeddings."""
    return EmbeddingRequest.of(body, llm).answer(name, number)
