"""/score: the relevance of texts to a text, or of pairs of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pellucid.encoders.model import EncoderModel
from pellucid.encoders.ranking import PAIR_TASKS, pair_scores
from pellucid.engine.request import Request
from pellucid.errors import InvalidRequest
from pellucid.serve.encoder_inputs import check_task, truncating
from pellucid.serve.request_body import (
    PLAIN_RULES,
    BodyType,
    ModelFields,
    RequestBody,
    Texts,
    TokenLimit,
    listed_texts,
)
from pellucid.serve.served_model import ServedModel
from pellucid.serve.vllm.response_form import listed


class ScoreFields(ModelFields, frozen=True, kw_only=True):
    """Fields of /score. A single ``text_1`` goes with every ``text_2``; else the texts go in pairs."""

    text_1: Texts
    text_2: Texts
    truncate_prompt_tokens: TokenLimit | None = None
    use_activation: bool = True
    instruction: str = ""


SCORE = BodyType(ScoreFields, PLAIN_RULES)


@dataclass(frozen=True)
class ScoreRequest:
    """A request for the relevance of the second text to the first text of each pair."""

    fields: ScoreFields
    pairs: Sequence[tuple[str, str]]
    model: EncoderModel
    groups: Sequence[Request] = ()  # nothing is generated

    @classmethod
    def of(cls, body: RequestBody[ScoreFields], llm: ServedModel) -> ScoreRequest:
        """Read a body. Raises InvalidRequest if a field is wrong or the model compares no texts."""
        fields = body.fields
        first, second = listed_texts("text_1", fields.text_1), listed_texts("text_2", fields.text_2)
        for name, texts in (("text_1", first), ("text_2", second)):
            if not texts:
                raise InvalidRequest(f"{name}=[]: must have at least one text")
        if len(first) not in (1, len(second)):
            raise InvalidRequest(
                f"text_1 has {len(first):,} texts and text_2 has {len(second):,}: give text_1 one text, or as many "
                "as text_2"
            )
        check_task(llm, *PAIR_TASKS)
        pairs = list(zip(first if len(first) > 1 else [first[0]] * len(second), second))
        return cls(fields, pairs, truncating(llm, fields.truncate_prompt_tokens))

    def answer(self, name: str, number: str) -> dict[str, Any]:
        """Compute the scores and return the response body of the model ``name``."""
        fields = self.fields
        scores, tokens = pair_scores(
            self.model,
            self.pairs,
            fields.truncate_prompt_tokens is not None,
            instruction=fields.instruction,
            raw=not fields.use_activation,
        )
        return listed("score", number, name, [{"object": "score", "score": one} for one in scores], tokens)


def scored(body: RequestBody[ScoreFields], llm: ServedModel, name: str, number: str) -> dict[str, Any]:
    """Response body of /score."""
    return ScoreRequest.of(body, llm).answer(name, number)
