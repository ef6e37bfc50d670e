"""/v1/chat/completions: answers a conversation with text, reasoning and tool calls."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pellucid.engine.output import Generation
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.sample.logprobs import joined
from pellucid.serve.body import MOST_CHOICES, MOST_LOGPROBS, Body
from pellucid.serve.chat.answer import AnswerReasoning, AnswerText, CallArguments, CallStart, ChatAnswer, Part
from pellucid.serve.chat.request import ChatRun, ChatRunRequest, Conversation
from pellucid.serve.chat.tools import Tool, ToolChoice, tool_of
from pellucid.serve.model import ServedModel
from pellucid.serve.openai.answer import REASONS, chat_logprobs, head, usage
from pellucid.serve.openai.choice import choice_of, shape_of
from pellucid.serve.openai.fields import stream_usage

VARIABLES = ("reasoning_effort", "enable_thinking")
"""Fields that become variables of the chat template."""


@dataclass(frozen=True)
class ChatRequest(ChatRunRequest):
    """A conversation that runs.

    ``logprobs`` is the number of reported alternatives of each token (None: no log-probabilities). ``with_usage``: a
    stream ends with its usage.
    """

    logprobs: int | None
    with_usage: bool

    @classmethod
    def of(cls, body: Body, llm: ServedModel) -> ChatRequest:
        """Read a body.

        Raises:
            InvalidRequest: a field is wrong; the message names it.
        """
        messages, count = body.required("messages"), body.count("n", 1, MOST_CHOICES) or 1
        logprobs, top = body.flag("logprobs"), body.count("top_logprobs", 0, MOST_LOGPROBS)
        if top is not None and not logprobs:
            raise InvalidRequest(f"top_logprobs={top}: needs logprobs=true")
        tools, choice = tools_of(body)
        shape, variables = (
            shape_of("response_format", body.take("response_format"), _inside),
            template_variables(body),
        )
        goes_on = _goes_on(body)
        with_usage, options = stream_usage(body), body.options(llm.recommended)
        if logprobs:
            options["logprobs"] = top or 0
        asked = Conversation(
            messages, options, count, tools, choice, shape, variables=variables, goes_on=goes_on
        )
        return cls(ChatRun(llm, asked), options["logprobs"] if logprobs else None, with_usage)

    def answer(self, name: str, number: str) -> dict[str, Any]:
        """Response body of the model ``name`` with the id ``number``, after the groups have ended."""
        made = self.run.group.results()
        answers = [self.run.answer(one) for one in made]
        return {
            **head(f"chatcmpl-{number}", "chat.completion", name),
            "choices": [self._choice(at, one, found) for at, (one, found) in enumerate(zip(made, answers))],
            "usage": usage(made, sum(self.run.tokens(one.reasoning) for one in answers)),
        }

    async def stream(self, name: str, number: str) -> AsyncGenerator[dict[str, Any], None]:
        """Chunks of the response. Each chunk has the text that a token completes."""
        group, begin = self.run.group, head(f"chatcmpl-{number}", "chat.completion.chunk", name)
        called, reasoning = set[int](), [""] * self.run.count
        async with aclosing(self.run.stream()) as outputs:  # before the first event: a full queue raises here
            for at in range(self.run.count):
                yield {**begin, "choices": [_delta(at, {"role": "assistant", "content": ""}, None)]}
            async for token, parts in outputs:
                at = token.sequence
                logprobs = None
                if self.logprobs is not None and token.logprobs is not None:
                    logprobs = chat_logprobs(joined([token.logprobs], self.logprobs), self.run.tokenizer)
                deltas = [_part_delta(part) for part in parts]
                if logprobs and not deltas:
                    deltas = [{"content": ""}]
                for number_of_delta, delta in enumerate(deltas):
                    shown = None if number_of_delta else logprobs
                    yield {**begin, "choices": [_delta(at, delta, shown)]}
                reasoning[at] += "".join(part.text for part in parts if isinstance(part, AnswerReasoning))
                called |= {at} if any(isinstance(part, CallStart) for part in parts) else set()
                if token.finish_reason:
                    reason = finish_reason(token.finish_reason, at in called)
                    yield {**begin, "choices": [{**_delta(at, {}, None), "finish_reason": reason}]}
        if self.with_usage:
            used = usage(group.results(), sum(map(self.run.tokens, reasoning)))
            yield {**begin, "choices": [], "usage": used}

    def _choice(self, at: int, made: Generation, answer: ChatAnswer) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": answer.text,
            "refusal": None,
            "annotations": [],
        }
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.calls:
            message["content"] = answer.text or None
            message["tool_calls"] = [
                {"id": one.id, "type": "function", "function": {"name": one.name, "arguments": one.arguments}}
                for one in answer.calls
            ]
        return {
            "index": at,
            "message": message,
            "logprobs": None if made.logprobs is None else chat_logprobs(made.logprobs, self.run.tokenizer),
            "finish_reason": finish_reason(made.finish_reason, bool(answer.calls)),
        }


def finish_reason(reason: str | None, called: bool) -> str:
    """OpenAI's finish reason."""
    found = REASONS[reason]
    return "tool_calls" if called and found == "stop" else found


def blank_chunk(name: str, number: str) -> dict[str, Any]:
    """A chunk without text."""
    return {**head(f"chatcmpl-{number}", "chat.completion.chunk", name), "choices": [_delta(0, {}, None)]}


def _delta(number: int, delta: dict[str, Any], logprobs: dict[str, Any] | None) -> dict[str, Any]:
    return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def _part_delta(part: Part) -> dict[str, Any]:
    """A part of an answer as the delta of a chunk."""
    if isinstance(part, AnswerText):
        return {"content": part.text}
    if isinstance(part, AnswerReasoning):
        return {"reasoning_content": part.text}
    if isinstance(part, CallStart):
        function = {"name": part.name, "arguments": ""}
        return {
            "tool_calls": [{"index": part.number, "id": part.id, "type": "function", "function": function}]
        }
    assert isinstance(part, CallArguments)
    return {"tool_calls": [{"index": part.number, "function": {"arguments": part.text}}]}


def _inside(value: Mapping[str, Any], kind: str) -> Any:
    return value.get(kind)


def tools_of(body: Body) -> tuple[Sequence[Tool], ToolChoice]:
    """The tools that the model sees, and the tools that it may call."""
    tools = [_tool(one, f"tools[{at}]") for at, one in enumerate(body.objects("tools"))]
    choice, parallel = body.take("tool_choice"), body.flag("parallel_tool_calls", True)
    return choice_of(tools, choice, parallel, _inside)


def _tool(value: Mapping[str, Any], where: str) -> Tool:
    function = value.get("function")
    if value.get("type") != "function" or not isinstance(function, Mapping):
        raise InvalidRequest(f"{where}={brief(value)}: must be an object of type function, with a function")
    return tool_of(f"{where}.function", function)


def _goes_on(body: Body) -> bool:
    """True if the answer continues the last message, from vLLM's fields."""
    goes_on = body.flag("continue_final_message")
    if body.flag("add_generation_prompt", not goes_on) is goes_on:
        raise InvalidRequest(
            "add_generation_prompt and continue_final_message must be different: leave the first one out"
        )
    return goes_on


def template_variables(body: Body) -> dict[str, Any]:
    """Chat template variables of a request."""
    found = body.take("chat_template_kwargs", {})
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise InvalidRequest(f"chat_template_kwargs={brief(found)}: must be an object of variables")
    for name in ("messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "self"):
        if name in found:
            raise InvalidRequest(f"chat_template_kwargs has {name}: the server gives it; leave it out")
    made = dict(found)
    for name in VARIABLES:
        if (value := body.take(name)) is not None:
            made[name] = value
    if made.get("reasoning_effort") == "none":
        made.setdefault("enable_thinking", False)
    return made
