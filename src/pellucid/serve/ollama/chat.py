"""/api/chat: answers a conversation."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.body import Body
from pellucid.serve.chat.answer import AnswerReasoning, AnswerText, AssembledCall, ChatAnswer, assembled
from pellucid.serve.chat.request import ChatRun, ChatRunRequest, Conversation
from pellucid.serve.chat.tools import chosen, tool_of
from pellucid.serve.model import ServedModel
from pellucid.serve.ollama.fields import PieceLogprobs, ended, options_of, piece, shape_of, thinking_of
from pellucid.tokenize.chat.conversation import conversation


@dataclass(frozen=True)
class OllamaChat(ChatRunRequest):
    """A chat request that runs on the engine."""

    @classmethod
    def of(cls, body: Body, llm: ServedModel) -> OllamaChat:
        """Read a body.

        Raises:
            InvalidRequest: a field is wrong; the message names it.
        """
        messages, tools = _messages(body.take("messages", [])), []
        for at, one in enumerate(body.objects("tools")):
            function = one.get("function")
            if not isinstance(function, dict) or one.get("type", "function") != "function":
                raise InvalidRequest(
                    f"tools[{at}]={brief(one)}: must be an object of type function, with a function"
                )
            tools.append(tool_of(f"tools[{at}].function", function))
        shape, variables = shape_of(body), thinking_of(body, llm)
        options = options_of(body, llm.recommended)
        choice = chosen(tools, None, False, True)
        return cls(
            ChatRun(llm, Conversation(messages, options, 1, tools, choice, shape, "format", variables))
        )

    def answer(self, name: str, number: str) -> dict[str, Any]:
        """Response body of the model ``name``."""
        (made,) = self.run.group.results()
        return ended(name, made, message=_message(self.run.answer(made)), **self._logprobs().all())

    async def stream(self, name: str, number: str) -> AsyncGenerator[dict[str, Any], None]:
        """Chunks of the answer. All tool calls are in one chunk, after the text."""
        parts, logprobs = [], self._logprobs()
        async with aclosing(self.run.stream()) as outputs:
            async for _, found in outputs:
                parts += found
                logprobs.heard += 1
                new = assembled(one for one in found if isinstance(one, (AnswerText, AnswerReasoning)))
                if new.text or new.reasoning:
                    yield piece(name, message=_message(new), **logprobs.next())
        if calls := assembled(parts).calls:
            yield piece(name, message=_message(ChatAnswer(calls=calls)))
        (made,) = self.run.group.results()
        yield ended(name, made, message=_message(ChatAnswer()), **logprobs.next())

    def _logprobs(self) -> PieceLogprobs:
        return PieceLogprobs(self.run.group, self.run.tokenizer)


def _message(answer: ChatAnswer) -> dict[str, Any]:
    made: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.reasoning:
        made["thinking"] = answer.reasoning
    if answer.calls:
        made["tool_calls"] = [_call(at, one) for at, one in enumerate(answer.calls)]
    return made


def _call(at: int, call: AssembledCall) -> dict[str, Any]:
    return {"id": call.id, "function": {"index": at, "name": call.name, "arguments": call.as_object}}


def _messages(given: Any) -> list[dict[str, Any]]:
    """Messages in the common form: ``tool_name`` of a tool message becomes ``name``."""
    made = []
    for at, message in enumerate(conversation(given)):
        if message.get("images"):
            raise InvalidRequest(f"messages[{at}].images: only text is read, no image")
        message.pop("images", None)
        if "tool_name" in message:
            message.setdefault("name", message.pop("tool_name"))
        made.append(message)
    return made
