"""/api/chat: answers a conversation."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pellucid.errors import InvalidRequest
from pellucid.serve.chat.answer_parser import AnswerReasoning, AnswerText, AssembledCall, ChatAnswer, assemble
from pellucid.serve.chat.chat_run import ChatRun, ChatRunRequest, Conversation
from pellucid.serve.chat.tools import tool_choice, tool_of
from pellucid.serve.ollama.ollama_fields import ChatOptions, options_of
from pellucid.serve.ollama.response_chunks import ChunkLogprobs, chunk, last_chunk
from pellucid.serve.request_body import RequestBody
from pellucid.serve.served_model import ServedModel
from pellucid.tokenize.chat.conversation import conversation


@dataclass(frozen=True)
class OllamaChat(ChatRunRequest):
    """A chat request that runs on the engine."""

    @classmethod
    def of(cls, body: RequestBody[ChatOptions], llm: ServedModel) -> OllamaChat:
        """Read a body. Raises InvalidRequest if a field is wrong."""
        fields, messages = body.fields, _messages(body.raw["messages"])
        tools = [tool_of(f"tools[{at}].function", one.function) for at, one in enumerate(fields.tools)]
        choice, options = tool_choice(tools, None, False, True), options_of(body, llm.recommended)
        schema, variables = fields.answer_schema, fields.variables(llm)
        return cls(
            ChatRun(llm, Conversation(messages, options, 1, tools, choice, schema, "format", variables))
        )

    def answer(self, name: str, number: str) -> dict[str, Any]:
        """Response body of the model ``name``."""
        (generation,) = self.run.group.results()
        return last_chunk(
            name, generation, message=_message(self.run.answer(generation)), **self._logprobs().all()
        )

    async def stream(self, name: str, number: str) -> AsyncGenerator[dict[str, Any], None]:
        """Chunks of the answer. All tool calls are in one chunk, after the text."""
        parts, logprobs = [], self._logprobs()
        async with aclosing(self.run.stream()) as outputs:
            async for _, new_parts in outputs:
                parts += new_parts
                logprobs.streamed += 1
                new = assemble(one for one in new_parts if isinstance(one, (AnswerText, AnswerReasoning)))
                if new.text or new.reasoning:
                    yield chunk(name, message=_message(new), **logprobs.next())
        if calls := assemble(parts).calls:
            yield chunk(name, message=_message(ChatAnswer(calls=calls)))
        (generation,) = self.run.group.results()
        yield last_chunk(name, generation, message=_message(ChatAnswer()), **logprobs.next())

    def _logprobs(self) -> ChunkLogprobs:
        return ChunkLogprobs(self.run.group, self.run.tokenizer)


def _message(answer: ChatAnswer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.reasoning:
        message["thinking"] = answer.reasoning
    if answer.calls:
        message["tool_calls"] = [_call(at, one) for at, one in enumerate(answer.calls)]
    return message


def _call(at: int, call: AssembledCall) -> dict[str, Any]:
    return {"id": call.id, "function": {"index": at, "name": call.name, "arguments": call.as_object}}


def _messages(given: Any) -> list[dict[str, Any]]:
    """Messages in the common form: ``tool_name`` of a tool message becomes ``name``."""
    messages = []
    for at, message in enumerate(conversation(given)):
        if message.get("images"):
            raise InvalidRequest(f"messages[{at}].images: only text is supported, no images")
        message.pop("images", None)
        if "tool_name" in message:
            message.setdefault("name", message.pop("tool_name"))
        messages.append(message)
    return messages
