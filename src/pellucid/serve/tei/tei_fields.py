"""Fields of several requests of text-embeddings-inference.

A request names no model, so the first model of the server answers, unless the field ``model`` names another one.
"""

from __future__ import annotations

from typing import Literal

from pellucid.encoders.model import EncoderModel
from pellucid.serve.encoder_inputs import truncating
from pellucid.serve.request_body import Count, Fields, ModelFields, Prompt, TruncationSide, side_of


class TruncationFields(ModelFields, frozen=True, kw_only=True):
    """Fields about texts that are too long. Without ``truncate`` they are refused."""

    truncate: bool = False
    truncation_direction: TruncationSide = "Right"

    def on(self, llm: EncoderModel) -> EncoderModel:
        """The model that cuts texts at the end that the request names."""
        return truncating(llm, side=side_of(self.truncation_direction))


class VectorInputFields(TruncationFields, frozen=True, kw_only=True):
    """Fields of /embed_all and /embed_sparse."""

    inputs: Prompt
    prompt_name: str | None = None


class TeiEmbeddingFields(VectorInputFields, frozen=True, kw_only=True):
    """Fields of /embed. Without ``normalize``, the vectors stay as the model makes them."""

    normalize: bool | None = None
    dimensions: Count | None = None


class LabelParameters(Fields, frozen=True, kw_only=True):
    """Parameters of Hugging Face's inference API. ``function_to_apply`` "none" is for logits."""

    top_k: Count | None = None
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None
