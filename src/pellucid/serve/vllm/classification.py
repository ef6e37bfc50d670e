"""/classify: the scores of the labels of texts."""

from __future__ import annotations

from typing import Any

from pellucid.encoders.classification import classify
from pellucid.engine.encoder_input import EncoderInput
from pellucid.serve.encoder_inputs import check_task, encoded_texts, listed_inputs, truncating
from pellucid.serve.request_body import PLAIN_RULES, BodyType, ModelFields, Prompt, RequestBody, TokenLimit
from pellucid.serve.served_model import ServedModel
from pellucid.serve.vllm.response_form import listed


class ClassificationFields(ModelFields, frozen=True, kw_only=True):
    """Fields of /classify. Without ``use_activation``, the response has logits."""

    input: Prompt
    truncate_prompt_tokens: TokenLimit | None = None
    use_activation: bool = True


CLASSIFICATION = BodyType(ClassificationFields, PLAIN_RULES)


def classified(
    body: RequestBody[ClassificationFields], llm: ServedModel, name: str, number: str
) -> dict[str, Any]:
    """Response body of /classify."""
    fields = body.fields
    check_task(llm, "classify")
    limit = fields.truncate_prompt_tokens
    encoded = encoded_texts(truncating(llm, limit), listed_inputs("input", fields.input), limit is not None)
    data = [
        {
            "label": one.label,
            "probs": list(one.scores if fields.use_activation else one.logits),
            "num_classes": len(one.labels),
        }
        for one in classify(llm, [EncoderInput(ids) for ids in encoded])
    ]
    return listed("classify", number, name, data, sum(map(len, encoded)))
