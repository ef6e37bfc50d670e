"""Anthropic's API: messages as blocks of text, thinking and tool calls, and token counts."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.engine.output import Generation
from pellucid.serve.api import NAMED_SSE, NO_DETAILS, Api, ClientCall, ErrorDetails, Route, json_response
from pellucid.serve.apis.anthropic_fields import COUNT, MESSAGE, THREAD, GenerateMessageFields, conversation_of
from pellucid.serve.chat.answer_parser import AnswerReasoning, AnswerText, CallStart, Part
from pellucid.serve.chat.chat_run import ChatRun, ChatRunRequest, prompt_of
from pellucid.serve.generation_response import generation_response
from pellucid.serve.openai_parts import receipt_field
from pellucid.serve.request_body import RequestBody
from pellucid.serve.served_model import ServedModel

# /v1/messages: the response in blocks of text, thinking and tool calls, complete or as a stream of events.

ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""Anthropic's error type for each HTTP status. Source: https://docs.anthropic.com/en/api/errors"""


def error_body(status: int, message: str, details: ErrorDetails = NO_DETAILS) -> dict[str, Any]:
    """Error body in Anthropic's form."""
    kind = ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    error: dict[str, Any] = {"type": kind, "message": message}
    if details.param == THREAD:
        # Anthropic's client then sends its requests again without the field.
        error["details"] = {"error_code": "thread_unsupported_request", "unsupported": [THREAD]}
    return {"type": "error", "error": error}


@dataclass(frozen=True)
class MessageRequest(ChatRunRequest):
    """A Messages request that runs on the engine."""

    @classmethod
    def of(cls, body: RequestBody[GenerateMessageFields], llm: ServedModel) -> MessageRequest:
        """Read a body. Raises InvalidRequest if a field is wrong."""
        return cls(ChatRun(llm, conversation_of(body, llm.recommended)))

    def answer(self, name: str, number: str) -> dict[str, Any]:
        """Response body of the model ``name`` with the id ``number``."""
        (generation,) = self.run.group.results()
        answer = self.run.answer(generation)
        content: list[dict[str, Any]] = []
        if answer.reasoning:
            content.append(_thinking(answer.reasoning))
        if answer.text:
            content.append(_text(answer.text))
        content += [_tool_use(one.id, one.name, one.as_object) for one in answer.calls]
        reason = _reason(generation.finish_reason, generation.stop_reason, bool(answer.calls))
        used = self._usage(generation, answer.reasoning)
        ended = {**reason, "usage": used, **receipt_field(generation)}
        return {**_message(name, number), "content": content, **ended}

    async def stream(self, name: str, number: str) -> AsyncGenerator[dict[str, Any], None]:
        """Response as a stream of events."""
        blocks, reasoning = BlockEvents(), ""
        (generation,) = self.run.group.results()
        none, used = _reason(None, None, False), self._usage(generation, "")
        start = {**_message(name, number), "content": [], **none, "usage": used}
        # Start the request before the first event, so that the error of a full queue sets the HTTP status.
        async with aclosing(self.run.stream()) as outputs:
            yield {"type": "message_start", "message": start}
            async for _, parts in outputs:
                for part in parts:
                    reasoning += part.text if isinstance(part, AnswerReasoning) else ""
                    for event in blocks.of(part):
                        yield event
        for event in blocks.end():
            yield event
        (generation,) = self.run.group.results()
        delta = _reason(generation.finish_reason, generation.stop_reason, blocks.called)
        used = self._usage(generation, reasoning)
        yield {"type": "message_delta", "delta": delta, "usage": used, **receipt_field(generation)}
        yield {"type": "message_stop"}

    def _usage(self, generation: Generation, reasoning: str) -> dict[str, Any]:
        """Token counts. ``input_tokens`` excludes the prompt tokens that the prefix cache had."""
        usage = generation.usage
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "cache_creation": None,
            "output_tokens": usage.generated_tokens,
            "output_tokens_details": {"thinking_tokens": self.run.tokens(reasoning)},
            "server_tool_use": None,
            "service_tier": "standard",
            "inference_geo": None,
        }


class BlockEvents:
    """Turns the parts of an answer into the events of content blocks, one block after another."""

    def __init__(self) -> None:
        self.called = False
        self._number, self._kind = -1, ""

    def of(self, part: Part) -> list[dict[str, Any]]:
        """Events of a part."""
        if isinstance(part, CallStart):
            self.called = True
            return self._begin(_tool_use(part.id, part.name, {}))
        if isinstance(part, AnswerText):
            begin = [] if self._kind == "text" else self._begin(_text(""))
            return [*begin, self._delta({"type": "text_delta", "text": part.text})]
        if isinstance(part, AnswerReasoning):
            begin = [] if self._kind == "thinking" else self._begin(_thinking(""))
            return [*begin, self._delta({"type": "thinking_delta", "thinking": part.text})]
        return [self._delta({"type": "input_json_delta", "partial_json": part.text})]

    def end(self) -> list[dict[str, Any]]:
        """Event that ends the open block; none if no block is open."""
        if not self._kind:
            return []
        self._kind = ""
        return [{"type": "content_block_stop", "index": self._number}]

    def _begin(self, block: dict[str, Any]) -> list[dict[str, Any]]:
        ended = self.end()
        self._number, self._kind = self._number + 1, block["type"]
        return [*ended, {"type": "content_block_start", "index": self._number, "content_block": block}]

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._number, "delta": delta}


def _message(name: str, number: str) -> dict[str, Any]:
    about = {"id": f"msg_{number}", "type": "message", "role": "assistant", "model": name}
    return {**about, "container": None, "stop_details": None}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "citations": []}  # Vercel's client refuses null


def _thinking(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": ""}


def _tool_use(number: str, name: str, given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": number, "name": name, "input": given, "caller": {"type": "direct"}}


def _reason(reason: str | None, stop: int | str | None, called: bool) -> dict[str, Any]:
    """Stop reason and stop sequence in Anthropic's form."""
    if reason is None:
        return {"stop_reason": None, "stop_sequence": None}
    if reason == "stop" and isinstance(stop, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": stop}
    ended = "tool_use" if called else "end_turn"
    return {"stop_reason": ended if reason in ("stop", "until", "probe") else "max_tokens", "stop_sequence": None}


async def _messages(call: ClientCall) -> Response:
    body = await call.read(MESSAGE)
    name, stream = call.model(body.fields.model), NAMED_SSE if body.fields.stream else None
    return await generation_response(call, name, lambda llm: MessageRequest.of(body, llm), stream)


async def _count_tokens(call: ClientCall) -> Response:
    body = await call.read(COUNT)
    async with call.use(call.model(body.fields.model)) as llm:
        conversation = await run_in_threadpool(conversation_of, body, {}, counts=True)
        count = len(await run_in_threadpool(prompt_of, llm, conversation, any_length=True))
        return json_response({"input_tokens": count})


ANTHROPIC = Api(
    "anthropic",
    {
        "POST /v1/messages": Route(_messages, "Answer a conversation.", MESSAGE, NAMED_SSE.media_type),
        "POST /v1/messages/count_tokens": Route(_count_tokens, "Count a conversation's tokens.", COUNT),
    },
    error_body,
    prefixes=("/v1/messages",),
)
