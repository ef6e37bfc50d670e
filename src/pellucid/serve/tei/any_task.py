"""POST /: the request of the model's task, as text-embeddings-inference and Hugging Face's endpoints have it.

A sentence encoder answers as /embed, a SPLADE model as /embed_sparse, a model with a vector for each token as
/embed_all, and a classifier as /predict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from msgspec import Meta

from pellucid.model.outputs import Task
from pellucid.serve.encoder_inputs import check_task
from pellucid.serve.request_body import BodyType, Count, RequestBody, TokenId
from pellucid.serve.served_model import ServedModel
from pellucid.serve.tei.prediction import PREDICT, labels_of
from pellucid.serve.tei.tei_embedding import (
    EMBED,
    EMBED_OTHERS,
    sparse_vectors_of,
    token_vectors_of,
    vectors_of,
)
from pellucid.serve.tei.tei_fields import LabelParameters, TruncationFields

AnyInputs = Annotated[
    str | list[str | TokenId | list[str | TokenId]],
    Meta(title="a text, token ids, or a list of these or of pairs"),
]


class AnyTaskFields(TruncationFields, frozen=True, kw_only=True):
    """The fields of all tasks. A field that the model's task does not have is refused."""

    inputs: AnyInputs
    prompt_name: str | None = None
    normalize: bool | None = None
    dimensions: Count | None = None
    raw_scores: bool = False
    parameters: LabelParameters | None = None


ANY_TASK = BodyType(AnyTaskFields)
BY_TASK: Mapping[Task, tuple[BodyType[Any], Callable[[Any, ServedModel], list[Any]]]] = {
    "embed": (EMBED, vectors_of),
    "sparse": (EMBED_OTHERS, sparse_vectors_of),
    "tokens": (EMBED_OTHERS, token_vectors_of),
    "classify": (PREDICT, labels_of),
}
"""The body and the function of its fields and the model."""


def answered(body: RequestBody[AnyTaskFields], llm: ServedModel, name: str, number: str) -> list[Any]:
    """Response body of POST /, by the task of the model."""
    check_task(llm, *BY_TASK)
    body_type, answer = BY_TASK[llm.spec.task]
    return answer(body_type.decode(body.raw).fields, llm)
