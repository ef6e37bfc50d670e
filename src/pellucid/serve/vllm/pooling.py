"""/pooling: what a model makes of texts, for every task: vectors, vectors of tokens, scores of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pellucid.encoders.classification import classify
from pellucid.encoders.embedding import embed, token_vectors
from pellucid.engine.encoder_input import EncoderInput
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import shown
from pellucid.model.outputs import Task
from pellucid.model.scores import scores_of
from pellucid.serve.encoder_inputs import check_task, encoded_texts, listed_inputs, truncating
from pellucid.serve.request_body import (
    PLAIN_RULES,
    BodyType,
    Count,
    ModelFields,
    Prompt,
    RequestBody,
    TokenLimit,
)
from pellucid.serve.served_model import ServedModel
from pellucid.serve.vector_formats import formatted
from pellucid.serve.vllm.response_form import listed

PoolingTask = Literal["embed", "classify", "score", "token_embed", "token_classify"]
NAMES: Mapping[Task, Sequence[PoolingTask]] = {
    "embed": ("embed",),
    "tokens": ("token_embed",),
    "classify": ("classify", "score"),
    "tag": ("token_classify",),
}
"""vLLM's names of the tasks."""


class PoolingFields(ModelFields, frozen=True, kw_only=True):
    """Fields of /pooling. ``task`` only checks the task of the model."""

    input: Prompt
    task: PoolingTask | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Count | None = None
    truncate_prompt_tokens: TokenLimit | None = None
    use_activation: bool = True


POOLING = BodyType(PoolingFields, PLAIN_RULES)


def pooled(body: RequestBody[PoolingFields], llm: ServedModel, name: str, number: str) -> dict[str, Any]:
    """Response body of /pooling."""
    fields = body.fields
    check_task(llm, *NAMES)
    names = NAMES[llm.spec.task]
    if fields.task not in (None, *names):
        raise InvalidRequest(
            f"task={fields.task!r}: the task of {shown(llm.spec.name)} is {names[0]}: leave it out"
        )
    if fields.dimensions is not None and llm.spec.task != "embed":
        raise InvalidRequest(
            f"dimensions={fields.dimensions}: only sentence vectors can be cut: leave it out"
        )
    limit = fields.truncate_prompt_tokens
    encoded = encoded_texts(truncating(llm, limit), listed_inputs("input", fields.input), limit is not None)
    data = [{"object": "pooling", "data": one} for one in _outputs(fields, llm, encoded)]
    return listed("pool", number, name, data, sum(map(len, encoded)))


def _outputs(fields: PoolingFields, llm: ServedModel, encoded: Sequence[list[int]]) -> list[Any]:
    """The outputs of each text: a vector, or a list of vectors if each token has a vector."""
    task, form, inputs = llm.spec.task, fields.encoding_format, [EncoderInput(ids) for ids in encoded]
    if task == "embed":
        return formatted(embed(llm, encoded, fields.dimensions), form)
    if form == "base64":
        raise InvalidRequest("encoding_format='base64': only sentence vectors have this format: leave it out")
    if task == "tokens":
        return [one.tolist() for one in token_vectors(llm, encoded)]
    if task == "classify":
        return [list(one.scores if fields.use_activation else one.logits) for one in classify(llm, inputs)]
    labels = llm.spec.labels
    assert labels is not None
    return [
        [scores_of(labels, row) if fields.use_activation else row.tolist() for row in rows]
        for rows in llm.encode(inputs)
    ]
