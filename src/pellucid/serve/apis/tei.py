"""The API of Hugging Face's text-embeddings-inference (TEI). /rerank and /tokenize are shared with other APIs.

A request names no model, so the first model of the server answers, unless the field ``model`` names another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from msgspec import Meta

import pellucid
from pellucid.base_llm import BaseLLM
from pellucid.encoders.ranking import similarity_of_rows
from pellucid.encoders.tasks import Classification, EncoderModel, classify, embed, sparse, token_vectors
from pellucid.errors import InvalidRequest, brief
from pellucid.model.outputs import Labels, Task, scores_of
from pellucid.serve import encoder_inputs as encoders
from pellucid.serve import request_body as bodies
from pellucid.serve.api import NO_DETAILS, Api, ErrorDetails, Route
from pellucid.serve.routes import facts_route, model_route
from pellucid.util.checks import token_id
from pellucid.weights.checkpoint import main_format


class TruncationFields(bodies.ModelFields, frozen=True, kw_only=True):
    """Fields about texts that are too long. Without ``truncate`` they are refused."""

    truncate: bool = False
    truncation_direction: bodies.TruncationSide = "Right"


class VectorInputFields(TruncationFields, frozen=True, kw_only=True):
    """Fields of /embed_all and /embed_sparse."""

    inputs: bodies.Prompt
    prompt_name: str | None = None


class TeiEmbeddingFields(VectorInputFields, frozen=True, kw_only=True):
    """Fields of /embed. Without ``normalize``, the vectors stay as the model makes them."""

    normalize: bool | None = None
    dimensions: bodies.Count | None = None


class LabelParameters(bodies.Fields, frozen=True, kw_only=True):
    """Parameters of Hugging Face's inference API. ``function_to_apply`` "none" is for logits."""

    top_k: bodies.Count | None = None
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None


def error_body(status: int, message: str, details: ErrorDetails = NO_DETAILS) -> dict[str, Any]:
    """Error body in text-embeddings-inference's form. Source: ``ErrorType`` in its router/src/lib.rs."""
    kind = "Overloaded" if status in (429, 503) else "Validation" if status < 500 or status == 501 else "Backend"
    return {"error": message, "error_type": kind}


# /predict: the scores of the labels of texts and of pairs of texts.
#
# ``inputs`` is a text, a pair of texts in a list, or a batch: a list of such lists. The response to a single input is a
# list of labels with their scores, the highest first. The response to a batch has a list of labels for each input. A
# request with ``parameters`` has the form of Hugging Face's inference API, and its response has the form for a batch.

Pair: TypeAlias = str | tuple[str, str]
PredictInput: TypeAlias = Annotated[
    str | list[str | list[str]], Meta(title="a text, a pair of texts, or a list of lists with a text or a pair")
]


class PredictFields(TruncationFields, frozen=True, kw_only=True):
    """Fields of /predict. With ``raw_scores``, the scores are logits."""

    inputs: PredictInput
    raw_scores: bool = False
    parameters: LabelParameters | None = None


def labels_of(fields: PredictFields, llm: EncoderModel) -> list[Any]:
    """Response body of /predict: the labels of each input with their scores, the highest first."""
    encoders.check_task(llm, "classify")
    texts, single = _pairs(fields.inputs)
    parameters = fields.parameters or LabelParameters()
    applied = parameters.function_to_apply
    if fields.raw_scores and applied not in (None, "none"):
        raise InvalidRequest(f"parameters.function_to_apply={applied!r} does not go with raw_scores: remove one")
    applied = "none" if fields.raw_scores else applied
    model = encoders.truncating(llm, side=bodies.side_of(fields.truncation_direction))
    found = classify(llm, model.inputs.texts(texts, fields.truncate))
    listed = [_ranked(one, applied)[: parameters.top_k] for one in found]
    return listed[0] if single and fields.parameters is None else listed


def _ranked(found: Classification, applied: Any) -> list[dict[str, Any]]:
    """The labels with their scores. ``applied`` replaces the function that the model states; None: the model's."""
    scores: Sequence[float] = found.scores
    if applied is not None:
        scores = scores_of(Labels(found.labels, applied), np.array(found.logits, np.float32))
    pairs = sorted(zip(found.labels, scores), key=lambda one: -one[1])
    return [{"label": label, "score": score} for label, score in pairs]


def _pairs(inputs: Any) -> tuple[list[Pair], bool]:
    """The texts and pairs of a request, and True if it is a single text or pair."""
    batch = isinstance(inputs, list) and any(isinstance(one, list) for one in inputs)
    items = bodies.listed_texts("inputs", inputs) if batch else [inputs]
    return [_pair(f"inputs[{at}]" if batch else "inputs", one) for at, one in enumerate(items)], not batch


def _pair(where: str, one: Any) -> Pair:
    texts = [one] if isinstance(one, str) else one
    if not 1 <= len(texts) <= 2 or not all(isinstance(text, str) for text in texts):
        raise InvalidRequest(f"{where}={brief(one)}: must be a text or a pair of texts; a batch is a list of lists")
    return texts[0] if len(texts) == 1 else (texts[0], texts[1])


class ComparedTexts(bodies.Fields, frozen=True):
    """A text, and the texts that are compared with it."""

    source_sentence: str
    sentences: Annotated[list[str], Meta(min_length=1)]


class SimilarityParameters(bodies.Fields, frozen=True, kw_only=True):
    """Parameters of /similarity."""

    truncate: bool = False
    truncation_direction: bodies.TruncationSide = "Right"
    prompt_name: str | None = None


class SimilarityFields(bodies.ModelFields, frozen=True, kw_only=True):
    """Fields of /similarity."""

    inputs: ComparedTexts
    parameters: SimilarityParameters = SimilarityParameters()


def vectors_of(fields: TeiEmbeddingFields, llm: EncoderModel) -> list[Any]:
    """Response body of /embed: a vector for each text."""
    encoders.check_task(llm, "embed")
    vectors = embed(llm, _encoded(fields, llm), fields.dimensions)
    return list(encoders.of_unit_length(llm, vectors, "normalize", fields.normalize).tolist())


def token_vectors_of(fields: VectorInputFields, llm: EncoderModel) -> list[Any]:
    """Response body of /embed_all: for each text the vectors of its tokens."""
    encoders.check_task(llm, "tokens")
    return [one.tolist() for one in token_vectors(llm, _encoded(fields, llm))]


def sparse_vectors_of(fields: VectorInputFields, llm: EncoderModel) -> list[Any]:
    """Response body of /embed_sparse: for each text its token ids with a weight."""
    encoders.check_task(llm, "sparse")
    found = sparse(llm, _encoded(fields, llm))
    return [[{"index": token, "value": value} for token, value in one.items()] for one in found]


def _encoded(fields: VectorInputFields, llm: EncoderModel) -> list[list[int]]:
    texts, prompt = encoders.listed_inputs("inputs", fields.inputs), encoders.prompt_of_name(llm, fields.prompt_name)
    return encoders.encoded_texts(llm, texts, fields.truncate, prompt, side=bodies.side_of(fields.truncation_direction))


def similarities(body: bodies.RequestBody[SimilarityFields], llm: BaseLLM[Any], name: str, number: str) -> list[Any]:
    """Response body of /similarity: the cosine of each sentence and the source."""
    inputs, parameters = body.fields.inputs, body.fields.parameters
    encoders.check_task(llm, "embed")
    texts = [inputs.source_sentence, *bodies.listed_texts("inputs.sentences", inputs.sentences)]
    prompt, side = encoders.prompt_of_name(llm, parameters.prompt_name), bodies.side_of(parameters.truncation_direction)
    vectors = embed(llm, encoders.encoded_texts(llm, texts, parameters.truncate, prompt, side=side))
    return similarity_of_rows(np.broadcast_to(vectors[0], vectors[1:].shape), vectors[1:])


# POST /: the request of the model's task, as text-embeddings-inference and Hugging Face's endpoints have it.
#
# A sentence encoder answers as /embed, a SPLADE model as /embed_sparse, a model with a vector for each token as
# /embed_all, and a classifier as /predict.

AnyInputs = Annotated[
    str | list[str | bodies.TokenId | list[str | bodies.TokenId]],
    Meta(title="a text, token ids, or a list of these or of pairs"),
]


class AnyTaskFields(TruncationFields, frozen=True, kw_only=True):
    """The fields of all tasks. A field that the model's task does not have is refused."""

    inputs: AnyInputs
    prompt_name: str | None = None
    normalize: bool | None = None
    dimensions: bodies.Count | None = None
    raw_scores: bool = False
    parameters: LabelParameters | None = None


OTHER_VECTORS = bodies.BodyType(VectorInputFields)
BY_TASK: Mapping[Task, tuple[bodies.BodyType[Any], Callable[[Any, BaseLLM[Any]], list[Any]]]] = {
    "embed": (bodies.BodyType(TeiEmbeddingFields), vectors_of),
    "sparse": (OTHER_VECTORS, sparse_vectors_of),
    "tokens": (OTHER_VECTORS, token_vectors_of),
    "classify": (bodies.BodyType(PredictFields), labels_of),
}
"""The body and the function of its fields and the model."""


def _of_task(summary: str, task: Task) -> Route:
    """The route of a task."""
    body_type, answer = BY_TASK[task]
    return model_route(summary, body_type, lambda body, llm, name, number: answer(body.fields, llm))


def answered(body: bodies.RequestBody[AnyTaskFields], llm: BaseLLM[Any], name: str, number: str) -> list[Any]:
    encoders.check_task(llm, *BY_TASK)
    body_type, answer = BY_TASK[llm.spec.task]
    return answer(body_type.decode(body.raw).fields, llm)


def information(llm: BaseLLM[Any], name: str) -> dict[str, Any]:
    """Response body of /info for the model ``name``. ``model_type`` names the model's task."""
    return {
        "model_id": name,
        "model_sha": None,
        "model_dtype": main_format(llm.checkpoint),
        "model_type": _model_type(llm),
        "max_input_length": llm.context,
        "max_client_batch_size": bodies.MAX_TEXTS,
        "auto_truncate": False,
        "version": pellucid.__version__,
    }


def _model_type(llm: BaseLLM[Any]) -> dict[str, Any]:
    """The task of a model: its pooling or its labels."""
    spec, labels = llm.spec, llm.spec.labels
    if spec.task == "classify" and labels is not None:
        names = labels.names
        by_id = {str(at): label for at, label in enumerate(names)}
        about = {"id2label": by_id, "label2id": {label: at for at, label in enumerate(names)}}
        return {"classifier" if labels.relevance is None else "reranker": about}
    if spec.task == "sparse":
        return {"embedding": {"pooling": "splade"}}
    if spec.task in ("embed", "tokens"):
        return {"embedding": {"pooling": spec.pooling.kind if spec.pooling else "none"}}
    return {spec.task: {}}


IdLists = Annotated[
    list[bodies.TokenId | list[bodies.TokenId]], Meta(title="token ids, or a list of lists of token ids", min_length=1)
]


class DecodeFields(bodies.ModelFields, frozen=True, kw_only=True):
    """Fields of /decode."""

    ids: IdLists
    skip_special_tokens: bool = True


def decoded(body: bodies.RequestBody[DecodeFields], llm: BaseLLM[Any], name: str, number: str) -> list[Any]:
    """Response body of /decode: the text of each list of token ids."""
    ids: Any = body.fields.ids
    lists = bodies.listed_texts("ids", ids if isinstance(ids[0], list) else [ids])
    for at, one in enumerate(lists):
        if not isinstance(one, list):
            raise InvalidRequest(f"ids[{at}]={brief(one)}: must be a list of token ids, as ids[0]")
    size = llm.inputs.vocabulary
    checked = [[token_id("ids", token, size) for token in one] for one in lists]
    return [llm.tokenizer.decode(one, skip_special=body.fields.skip_special_tokens) for one in checked]


def tokens_of(
    llm: BaseLLM[Any], texts: Sequence[str], add_special: bool, parse_special: bool, prompt_name: str | None
) -> list[list[dict[str, Any]]]:
    """The tokens of each text: their ids and texts, and the characters that they cover."""
    prompt = llm.inputs.prompt_of(encoders.prompt_of_name(llm, prompt_name)) if prompt_name else ""
    return [
        [
            {
                "id": token.id,
                "text": token.text,
                "special": token.special,
                "start": None if token.special else token.start,
                "stop": None if token.special else token.end,
            }
            for token in llm.tokenizer.encode_with_offsets(
                prompt + text, add_special=add_special, parse_special=parse_special
            )
        ]
        for text in texts
    ]


TEI = Api(
    "text-embeddings-inference",
    {
        "POST /": model_route("The request of the model's task.", bodies.BodyType(AnyTaskFields), answered),
        "POST /embed": _of_task("Vectors of texts.", "embed"),
        "POST /embed_all": _of_task("Vectors of the tokens of texts.", "tokens"),
        "POST /embed_sparse": _of_task("Sparse vectors of texts.", "sparse"),
        "POST /predict": _of_task("Scores of the labels of texts.", "classify"),
        "POST /similarity": model_route(
            "Cosines of a text and others.", bodies.BodyType(SimilarityFields), similarities
        ),
        "POST /decode": model_route("The texts of token ids.", bodies.BodyType(DecodeFields), decoded),
        "GET /info": facts_route("Facts about a model.", information),
    },
    error_body,
)
