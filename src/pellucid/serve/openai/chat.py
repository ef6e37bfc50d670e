"""/v1/chat/completions: messages in, an answer out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from pellucid.engine.output import Generation
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.llm import LLM
from pellucid.serve.openai.answer import REASONS, chat_logprobs, usage
from pellucid.serve.openai.body import MOST_CHOICES, Body
from pellucid.tokenize.chat.conversation import conversation

MOST_LOGPROBS = 20


@dataclass(frozen=True)
class ChatRequest:
    """What a body asks for: ``choices`` answers to ``messages``, with these ``options`` of a generation."""

    messages: list[dict[str, Any]]
    choices: int
    options: dict[str, Any]

    @classmethod
    def of(cls, body: Body, llm: LLM) -> ChatRequest:
        """Read a body.

        Raises:
            InvalidRequest: a field is wrong; the message names it.
        """
        messages, choices = conversation(body.required("messages")), body.count("n", 1, MOST_CHOICES) or 1
        logprobs, top = body.flag("logprobs"), body.count("top_logprobs", 0, MOST_LOGPROBS)
        if top is not None and not logprobs:
            raise InvalidRequest(f"top_logprobs={top}: needs logprobs=true")
        shape = _shape(body.take("response_format"))
        options = {**body.options(llm.recommended), **shape}
        if logprobs:
            options["logprobs"] = top or 0
        return cls(messages, choices, options)

    def run(self, llm: LLM, name: str, number: str) -> dict[str, Any]:
        """Make the answers, and return the body ``number`` of a response of the model ``name``."""
        made = llm.samples(self.messages, self.choices, **self.options)
        return {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": name,
            "choices": [_choice(at, one, llm) for at, one in enumerate(made)],
            "usage": usage(made),
        }


def _choice(number: int, made: Generation, llm: LLM) -> dict[str, Any]:
    return {
        "index": number,
        "message": {"role": "assistant", "content": made.text, "refusal": None},
        "logprobs": None if made.logprobs is None else chat_logprobs(made.logprobs, llm.tokenizer),
        "finish_reason": REASONS[made.finish_reason],
    }


def _shape(wanted: Any) -> dict[str, Any]:
    """The constraint that ``response_format`` asks for."""
    if wanted is None:
        return {}
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"json_schema": {"type": "object"}}
    if kind == "json_schema":
        schema = wanted.get("json_schema")
        if isinstance(schema, dict) and isinstance(schema.get("schema"), dict):
            return {"json_schema": schema["schema"]}
        raise InvalidRequest(
            f"response_format.json_schema={brief(schema)}: must be an object whose field schema is a JSON schema"
        )
    raise InvalidRequest(
        f"response_format={brief(wanted)}: must be an object whose type is text, json_object or json_schema"
    )
