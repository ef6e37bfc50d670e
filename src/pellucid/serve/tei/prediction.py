"""/predict: the scores of the labels of texts and of pairs of texts.

``inputs`` is a text, a pair of texts in a list, or a batch: a list of such lists. The response to a single input is a
list of labels with their scores, the highest first. The response to a batch has a list of labels for each input. A
request with ``parameters`` has the form of Hugging Face's inference API, and its response has the form for a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

import numpy as np
from msgspec import Meta

from pellucid.encoders.classification import Classification, classify
from pellucid.encoders.model import EncoderModel
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.model.outputs import Labels
from pellucid.model.scores import scores_of
from pellucid.serve.encoder_inputs import check_task
from pellucid.serve.request_body import BodyType, RequestBody, listed_texts
from pellucid.serve.served_model import ServedModel
from pellucid.serve.tei.tei_fields import LabelParameters, TruncationFields

Pair: TypeAlias = str | tuple[str, str]
PredictInput: TypeAlias = Annotated[
    str | list[str | list[str]],
    Meta(title="a text, a pair of texts, or a list of lists with a text or a pair"),
]


class PredictFields(TruncationFields, frozen=True, kw_only=True):
    """Fields of /predict. With ``raw_scores``, the scores are logits."""

    inputs: PredictInput
    raw_scores: bool = False
    parameters: LabelParameters | None = None


PREDICT = BodyType(PredictFields)


def predicted(body: RequestBody[PredictFields], llm: ServedModel, name: str, number: str) -> list[Any]:
    """Response body of /predict."""
    return labels_of(body.fields, llm)


def labels_of(fields: PredictFields, llm: EncoderModel) -> list[Any]:
    """The labels of the inputs of a request with their scores, the highest first."""
    check_task(llm, "classify")
    texts, single = _pairs(fields.inputs)
    parameters = fields.parameters or LabelParameters()
    applied = parameters.function_to_apply
    if fields.raw_scores and applied not in (None, "none"):
        raise InvalidRequest(
            f"parameters.function_to_apply={applied!r} does not go with raw_scores: remove one"
        )
    applied = "none" if fields.raw_scores else applied
    found = classify(llm, fields.on(llm).inputs.texts(texts, fields.truncate))
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
    items = listed_texts("inputs", inputs) if batch else [inputs]
    return [_pair(f"inputs[{at}]" if batch else "inputs", one) for at, one in enumerate(items)], not batch


def _pair(where: str, one: Any) -> Pair:
    texts = [one] if isinstance(one, str) else one
    if not 1 <= len(texts) <= 2 or not all(isinstance(text, str) for text in texts):
        raise InvalidRequest(
            f"{where}={brief(one)}: must be a text or a pair of texts; a batch is a list of lists"
        )
    return texts[0] if len(texts) == 1 else (texts[0], texts[1])
