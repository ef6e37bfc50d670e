"""vLLM's API for encoders: scores of pairs, labels, and what a model makes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pellucid.base_llm import BaseLLM
from pellucid.encoders.ranking import PAIR_TASKS, pair_scores
from pellucid.encoders.tasks import classify, embed, token_vectors
from pellucid.engine.encoder_inputs import EncoderInput
from pellucid.errors import InvalidRequest, shown
from pellucid.model.outputs import Task, scores_of
from pellucid.serve import request_body as bodies
from pellucid.serve.api import Api
from pellucid.serve.encoder_inputs import check_task, encoded_texts, formatted, listed_inputs, truncating
from pellucid.serve.openai_parts import error_body
from pellucid.serve.routes import model_route


def listed(prefix: str, number: str, name: str, data: Sequence[dict[str, Any]], tokens: int) -> dict[str, Any]:
    """A response with an entry for each input. ``tokens`` is the number of tokens of the inputs."""
    return {
        "id": f"{prefix}-{number}",
        "object": "list",
        "created": int(time.time()),
        "model": name,
        "data": [{"index": at, **one} for at, one in enumerate(data)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }


class ClassificationFields(bodies.ModelFields, frozen=True, kw_only=True):
    """Fields of /classify. Without ``use_activation``, the response has logits."""

    input: bodies.Prompt
    truncate_prompt_tokens: bodies.TokenLimit | None = None
    use_activation: bool = True


def classified(
    body: bodies.RequestBody[ClassificationFields], llm: BaseLLM[Any], name: str, number: str
) -> dict[str, Any]:
    fields = body.fields
    check_task(llm, "classify")
    encoded = encoded_texts(llm, listed_inputs("input", fields.input), limit=fields.truncate_prompt_tokens)
    data = [
        {
            "label": one.label,
            "probs": list(one.scores if fields.use_activation else one.logits),
            "num_classes": len(one.labels),
        }
        for one in classify(llm, [EncoderInput(ids) for ids in encoded])
    ]
    return listed("classify", number, name, data, sum(map(len, encoded)))


PoolingTask = Literal["embed", "classify", "score", "token_embed", "token_classify"]
NAMES: Mapping[Task, Sequence[PoolingTask]] = {
    "embed": ("embed",),
    "tokens": ("token_embed",),
    "classify": ("classify", "score"),
    "tag": ("token_classify",),
}
"""vLLM's names of the tasks."""


class PoolingFields(bodies.ModelFields, frozen=True, kw_only=True):
    """Fields of /pooling. ``task`` only checks the task of the model."""

    input: bodies.Prompt
    task: PoolingTask | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: bodies.Count | None = None
    truncate_prompt_tokens: bodies.TokenLimit | None = None
    use_activation: bool = True


def pooled(body: bodies.RequestBody[PoolingFields], llm: BaseLLM[Any], name: str, number: str) -> dict[str, Any]:
    fields = body.fields
    check_task(llm, *NAMES)
    names = NAMES[llm.spec.task]
    if fields.task not in (None, *names):
        raise InvalidRequest(f"task={fields.task!r}: the task of {shown(llm.spec.name)} is {names[0]}: leave it out")
    if fields.dimensions is not None and llm.spec.task != "embed":
        raise InvalidRequest(f"dimensions={fields.dimensions}: only sentence vectors can be cut: leave it out")
    encoded = encoded_texts(llm, listed_inputs("input", fields.input), limit=fields.truncate_prompt_tokens)
    data = [{"object": "pooling", "data": one} for one in _outputs(fields, llm, encoded)]
    return listed("pool", number, name, data, sum(map(len, encoded)))


def _outputs(fields: PoolingFields, llm: BaseLLM[Any], encoded: Sequence[list[int]]) -> list[Any]:
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


class ScoreFields(bodies.ModelFields, frozen=True, kw_only=True):
    """Fields of /score. A single ``text_1`` goes with every ``text_2``; else the texts go in pairs."""

    text_1: bodies.Texts
    text_2: bodies.Texts
    truncate_prompt_tokens: bodies.TokenLimit | None = None
    use_activation: bool = True
    instruction: str = ""


SCORE = bodies.BodyType(ScoreFields, bodies.PLAIN_RULES)


def scored(body: bodies.RequestBody[ScoreFields], llm: BaseLLM[Any], name: str, number: str) -> dict[str, Any]:
    """Response body of /score: the relevance of the second text to the first text of each pair."""
    fields, limit = body.fields, body.fields.truncate_prompt_tokens
    first, second = bodies.listed_texts("text_1", fields.text_1), bodies.listed_texts("text_2", fields.text_2)
    for field, texts in (("text_1", first), ("text_2", second)):
        if not texts:
            raise InvalidRequest(f"{field}=[]: must have at least one text")
    if len(first) not in (1, len(second)):
        raise InvalidRequest(
            f"text_1 has {len(first):,} texts and text_2 has {len(second):,}: give text_1 one text, or as many "
            "as text_2"
        )
    check_task(llm, *PAIR_TASKS)
    pairs = list(zip(first if len(first) > 1 else [first[0]] * len(second), second))
    scores, tokens = pair_scores(
        truncating(llm, limit), pairs, limit is not None, instruction=fields.instruction, raw=not fields.use_activation
    )
    return listed("score", number, name, [{"object": "score", "score": one} for one in scores], tokens)


SCORES = model_route("The relevance of pairs of texts.", SCORE, scored)
VLLM = Api(
    "vllm",
    {
        "POST /score": SCORES,
        "POST /v1/score": SCORES,
        "POST /classify": model_route(
            "Scores of the labels of texts.", bodies.BodyType(ClassificationFields, bodies.PLAIN_RULES), classified
        ),
        "POST /pooling": model_route(
            "What a model makes of texts.", bodies.BodyType(PoolingFields, bodies.PLAIN_RULES), pooled
        ),
    },
    error_body,
)
