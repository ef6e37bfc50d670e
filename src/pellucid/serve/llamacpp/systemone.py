"""/v1/systemone: typed questions about a state, each answered with a probability for each option.

Source: the section "POST /v1/systemone" of llama.cpp's tools/server/README.md, and the OpenAPI of TypeSafe's API.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from pellucid.decide.questions import LEAST_LEVELS, MOST_LEVELS, MOST_OPTIONS, MOST_QUESTIONS
from pellucid.errors import UnsupportedTask
from pellucid.errors.messages import shown
from pellucid.serve.json_schema import Schema, closed_object
from pellucid.serve.request_body import BodyRules, BodyType, ModelFields, RequestBody
from pellucid.serve.served_model import ServedModel

CONTENT: Schema = {"anyOf": [{"type": "string"}, {"type": "object"}, {"type": "array"}]}
DESCRIPTION: Schema = {"anyOf": [*CONTENT["anyOf"], {"type": "null"}]}


def _question(kind: str, criteria: Schema, *required: str) -> Schema:
    fields = {"type": {"const": kind}, "instructions": CONTENT, "criteria": criteria}
    return closed_object(fields, ("type", "instructions", *required))


QUESTION: Schema = {
    "anyOf": [
        _question(
            "choice",
            {
                "type": "object",
                "additionalProperties": DESCRIPTION,
                "minProperties": 1,
                "maxProperties": MOST_OPTIONS,
                "description": "The options, each with a description or null.",
            },
            "criteria",
        ),
        _question(
            "score",
            {
                "type": "array",
                "items": CONTENT,
                "minItems": LEAST_LEVELS,
                "maxItems": MOST_LEVELS,
                "description": "The levels, the lowest first.",
            },
            "criteria",
        ),
        _question(
            "noul",
            {
                **closed_object({"true": DESCRIPTION, "false": DESCRIPTION}),
                "description": "What counts as yes and as no.",
            },
        ),
    ]
}
Questions = Annotated[
    dict[str, Any],
    Meta(
        extra_json_schema={
            "additionalProperties": QUESTION,
            "minProperties": 1,
            "maxProperties": MOST_QUESTIONS,
            "description": "The questions by id: a choice, a score, or yes/no (noul).",
        }
    ),
]


class SystemOneFields(ModelFields, frozen=True, kw_only=True):
    """Fields of /v1/systemone. The last two are Pellucid's: reasons, and instruct models."""

    state: Any
    questions: Questions
    explain: bool = False
    uncalibrated: bool = False


SYSTEMONE = BodyType(
    SystemOneFields,
    BodyRules(only={"files": [], "images": [], "videos": [], "assets": {}, "stream": False}),
)


def systemone(body: RequestBody[SystemOneFields], llm: ServedModel, name: str, number: str) -> dict[str, Any]:
    """Answer the questions, and return the response body of the model ``name``.

    Raises:
        UnsupportedTask: the model is no decision model, and the request does not accept uncalibrated answers.
        InvalidRequest: as ``LLM.decide``.
    """
    fields = body.fields
    if llm.decider.format is None and not fields.uncalibrated:
        raise UnsupportedTask(
            f"{shown(name)} is no decision model, so its probabilities are not calibrated: load a decision model, or "
            "set uncalibrated=true"
        )
    decisions = llm.decide(fields.state, fields.questions, explain=fields.explain)
    usage = {"input_tokens": decisions.prompt_tokens, "output_tokens": 0}
    return {"model": name, "answers": decisions.as_dict(), "usage": usage}
