"""Cohere's and Jina's API for encoders: vectors and ranking.

Sources: https://docs.cohere.com/reference/rerank and https://docs.cohere.com/reference/embed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta

from pellucid.base_llm import BaseLLM
from pellucid.encoders.ranking import PAIR_TASKS, pair_scores
from pellucid.encoders.tasks import embed
from pellucid.errors import InvalidRequest, brief
from pellucid.serve import encoder_inputs as encoders
from pellucid.serve import request_body as bodies
from pellucid.serve.api import NO_DETAILS, Api, ErrorDetails
from pellucid.serve.routes import model_route
from pellucid.tokenize.encoding import Side


def meta(version: int, tokens: int, **units: int) -> dict[str, Any]:
    """The field ``meta``: the version of the API, the tokens of the input, and what Cohere would bill."""
    return {"api_version": {"version": str(version)}, "billed_units": units, "tokens": {"input_tokens": tokens}}


def error_body(status: int, message: str, details: ErrorDetails = NO_DETAILS) -> dict[str, Any]:
    return {"message": message}


InputType = Literal["search_document", "search_query", "classification", "clustering", "image"]
Formats = Annotated[list[encoders.VectorFormat], Meta(min_length=1, max_length=6)]


class EmbeddedText(bodies.Fields, frozen=True, kw_only=True):
    """A part of an input with several parts."""

    type: Literal["text"]
    text: str


class PartedInput(bodies.Fields, frozen=True):
    """An input of /v2/embed, in parts."""

    content: Annotated[list[EmbeddedText], Meta(min_length=1)]


class CohereEmbeddingFields(bodies.ModelFields, frozen=True, kw_only=True):
    """Fields of /v1/embed."""

    texts: list[str] | None = None
    input_type: InputType | None = None
    embedding_types: Formats | None = None
    truncate: Literal["NONE", "START", "END"] = "END"


class CohereEmbeddingFieldsV2(CohereEmbeddingFields, frozen=True, kw_only=True):
    """Fields of /v2/embed."""

    inputs: list[PartedInput] | None = None
    max_tokens: bodies.Count | None = None
    output_dimension: bodies.Count | None = None


RULES = bodies.BodyRules(only={"images": []})


def embedded_v1(
    body: bodies.RequestBody[CohereEmbeddingFields], llm: BaseLLM[Any], name: str, number: str
) -> dict[str, Any]:
    """Response body of /v1/embed: a list of vectors, or lists by format if the request names formats."""
    fields = body.fields
    return _response(fields, llm, number, fields.texts or (), None, None, 1)


def embedded_v2(
    body: bodies.RequestBody[CohereEmbeddingFieldsV2], llm: BaseLLM[Any], name: str, number: str
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
    llm: BaseLLM[Any],
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
    encoders.check_task(llm, "embed")
    side: Side = "left" if fields.truncate == "START" else "right"
    prompt, cut = encoders.prompt_of_purpose(llm, fields.input_type), fields.truncate != "NONE"
    encoded = encoders.encoded_texts(llm, bodies.listed_texts("texts", texts), cut, prompt, limit, side)
    vectors, tokens = embed(llm, encoded, width), sum(map(len, encoded))
    forms: Sequence[encoders.VectorFormat] = fields.embedding_types or ("float",)
    found = {one: encoders.formatted(vectors, one) for one in forms}
    by_type = version == 2 or fields.embedding_types is not None
    return {
        "id": f"embed-{number}",
        "embeddings": found if by_type else found["float"],
        "texts": list(texts),
        "meta": meta(version, tokens, input_tokens=tokens),
        "response_type": "embeddings_by_type" if by_type else "embeddings_floats",
    }


# /rerank, /v1/rerank, /v2/rerank: ranks documents by their relevance to a query.
#
# A request has the fields of Cohere, Jina, vLLM and llama.cpp (``documents``), or of text-embeddings-inference
# (``texts``). A response to ``documents`` has the fields of all four servers.

Document: TypeAlias = str | Mapping[str, str]
Documents: TypeAlias = Annotated[
    str | list[str | dict[str, str]], Meta(title="a text, or a list of texts and of objects with a text")
]
SEARCH_UNIT = 100
"""Documents that Cohere bills as a search."""


class RankingFields(bodies.ModelFields, frozen=True, kw_only=True):
    """Fields of a request that ranks. ``instruction`` says what makes a document relevant (``llm.rerank``).

    ``rank_fields`` are the fields of documents that the model reads; without it the model reads ``text``.
    """

    query: Annotated[str, Meta(min_length=1)]
    documents: Documents | None = None
    texts: bodies.Texts | None = None
    top_n: bodies.Count | None = None
    return_documents: bool = False
    return_text: bool = False
    truncate: bool = True
    truncation_direction: bodies.TruncationSide = "Right"
    truncate_prompt_tokens: bodies.TokenLimit | None = None
    max_tokens_per_doc: bodies.Count | None = None
    rank_fields: Annotated[list[str], Meta(min_length=1)] | None = None
    raw_scores: bool = False
    instruction: str = ""


RANKING = bodies.BodyType(
    RankingFields, bodies.BodyRules(ignored=frozenset({"user"}), only={"max_chunks_per_doc": 1}), required=()
)


def ranked(
    body: bodies.RequestBody[RankingFields], llm: BaseLLM[Any], name: str, number: str, version: int = 1
) -> dict[str, Any] | list[Any]:
    """Response body of /rerank and /v1/rerank; of /v2/rerank with ``version`` 2 of Cohere's API."""
    fields, limit = body.fields, body.fields.truncate_prompt_tokens
    documents = _documents(fields)
    field = "documents" if fields.texts is None else "texts"
    encoders.check_task(llm, *PAIR_TASKS)
    texts = [_text(f"{field}[{at}]", one, fields.rank_fields) for at, one in enumerate(documents)]
    if fields.max_tokens_per_doc is not None:
        texts = [_shortened(llm, text, fields.max_tokens_per_doc) for text in texts]
    model = encoders.truncating(llm, limit, bodies.side_of(fields.truncation_direction))
    pairs, truncate = [(fields.query, text) for text in texts], fields.truncate or limit is not None
    scores, tokens = pair_scores(model, pairs, truncate, instruction=fields.instruction, raw=fields.raw_scores)
    order = sorted(range(len(scores)), key=lambda at: -scores[at])[: fields.top_n]
    if fields.texts is not None:
        return [
            {"index": at, "score": scores[at], **({"text": texts[at]} if fields.return_text else {})} for at in order
        ]
    shown = [{"text": one} if isinstance(one, str) else one for one in documents]
    return {
        "id": f"rerank-{number}",
        "model": name,
        "object": "list",
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "results": [
            {"index": at, "relevance_score": scores[at], **({"document": shown[at]} if fields.return_documents else {})}
            for at in order
        ],
        "meta": meta(version, tokens, search_units=-(-len(pairs) // SEARCH_UNIT)),
    }


def _documents(fields: RankingFields) -> Sequence[Document]:
    """The documents of a request, whose other fields are those of one server."""
    plain = fields.texts is not None
    name, other = ("texts", "documents") if plain else ("documents", "texts")
    odd = [other, "return_documents" if plain else "return_text"]
    odd += ["max_tokens_per_doc", "rank_fields"] if plain else []
    for one in odd:
        if getattr(fields, one) not in (None, False):
            raise InvalidRequest(f"{one} does not go with {name}: leave it out")
    documents: Any = fields.texts if plain else fields.documents
    if documents is None:
        raise InvalidRequest("documents is missing: the request must have it")
    if not documents:
        raise InvalidRequest(f"{name}=[]: must have at least one text")
    return bodies.listed_texts(name, documents)


def _text(where: str, document: Document, rank_fields: Sequence[str] | None) -> str:
    """The text that the model reads: ``text`` of an object, or its ``rank_fields``, a line for each."""
    if isinstance(document, str):
        return document
    missing = next((one for one in rank_fields or ("text",) if one not in document), None)
    if missing is not None:
        raise InvalidRequest(f"{where}={brief(dict(document))}: it has no {brief(missing)}")
    if rank_fields is None:
        return document["text"]
    return "\n".join(f"{one}: {document[one]}" for one in rank_fields)


def _shortened(llm: BaseLLM[Any], text: str, limit: int) -> str:
    """The text up to the end of its first ``limit`` tokens."""
    offsets = llm.tokenizer.encode_with_offsets(text, add_special=False).offsets
    return text if len(offsets) <= limit else text[: offsets[limit - 1][1]]


# /v1/rerank is in ``llamacpp.py``, because its server has it too.
COHERE = Api(
    "cohere",
    {
        "POST /v1/embed": model_route("Vectors of texts.", bodies.BodyType(CohereEmbeddingFields, RULES), embedded_v1),
        "POST /v2/embed": model_route(
            "Vectors of texts in several formats.",
            bodies.BodyType(CohereEmbeddingFieldsV2, RULES, required=("input_type",)),
            embedded_v2,
        ),
        "POST /v2/rerank": model_route("Rank documents by a query.", RANKING, partial(ranked, version=2)),
    },
    error_body,
    prefixes=("/v2/",),
)
