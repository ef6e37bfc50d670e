"""/v1/chat/completions: messages in, an answer out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pellucid.engine.output import Generation
from pellucid.engine.request import RequestGroup
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.llm import LLM
from pellucid.sample.logprobs import joined
from pellucid.serve.openai.answer import REASONS, chat_logprobs, head, usage
from pellucid.serve.openai.body import MOST_CHOICES, MOST_LOGPROBS, Body
from pellucid.tokenize.chat.conversation import conversation


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

    def groups(self, llm: LLM) -> list[RequestGroup]:
        """The request to the engine, checked."""
        return [llm.request(self.messages, self.choices, **self.options)]

    def answer(self, groups: Sequence[RequestGroup], llm: LLM, name: str, number: str) -> dict[str, Any]:
        """The body of the answer ``number`` of the model ``name``, when the groups have ended."""
        made = groups[0].results()
        return {
            **head(f"chatcmpl-{number}", "chat.completion", name),
            "choices": [_choice(at, one, llm) for at, one in enumerate(made)],
            "usage": usage(made),
        }

    async def stream(
        self, groups: Sequence[RequestGroup], llm: LLM, name: str, number: str, with_usage: bool
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The answer in pieces: each has the text that a token has completed."""
        (group,), begin = groups, head(f"chatcmpl-{number}", "chat.completion.chunk", name)
        for at in range(self.choices):
            yield {**begin, "choices": [_delta(at, {"role": "assistant", "content": ""}, None)]}
        async with aclosing(group.stream()) as outputs:
            async for at, output in outputs:
                logprobs = None
                if "logprobs" in self.options:
                    one = joined(group.builders[at].logprobs[-1:], self.options["logprobs"])
                    logprobs = chat_logprobs(one, llm.tokenizer)
                if output.text or logprobs:
                    yield {**begin, "choices": [_delta(at, {"content": output.text}, logprobs)]}
                if output.finish_reason:
                    ended = {**_delta(at, {}, None), "finish_reason": REASONS[output.finish_reason]}
                    yield {**begin, "choices": [ended]}
        if with_usage:
            yield {**begin, "choices": [], "usage": usage(group.results())}


def _delta(number: int, delta: dict[str, Any], logprobs: dict[str, Any] | None) -> dict[str, Any]:
    return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": None}


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
