"""The responses of Ollama's API: chat, generation, downloads."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pellucid.engine.request import Request
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.apis.ollama_fields import ChatOptions, ChunkLogprobs, PromptOptions, chunk, last_chunk, options_of
from pellucid.serve.chat.answer_parser import AnswerReasoning, AnswerText, AssembledCall, ChatAnswer, assemble
from pellucid.serve.chat.chat_run import ChatRun, ChatRunRequest, Conversation
from pellucid.serve.chat.messages import tool_choice, tool_of
from pellucid.serve.generation_options import add_stop_tokens
from pellucid.serve.json_schema import closed
from pellucid.serve.pool import ModelPool
from pellucid.serve.request_body import RequestBody
from pellucid.serve.served_model import ServedModel
from pellucid.tokenize import Tokenizer
from pellucid.tokenize.chat.conversation import conversation
from pellucid.tokenize.infill import infill_prompt

# /api/chat: answers a conversation.


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
        return cls(ChatRun(llm, Conversation(messages, options, 1, tools, choice, schema, "format", variables)))

    def answer(self, name: str, number: str) -> dict[str, Any]:
        """Response body of the model ``name``."""
        (generation,) = self.run.group.results()
        return last_chunk(name, generation, message=_message(self.run.answer(generation)), **self._logprobs().all())

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


# /api/generate: answers or continues a prompt; with ``suffix``, fills the gap between prompt and suffix.


@dataclass(frozen=True)
class OllamaGenerate:
    """A request that answers a prompt as a chat message (``run``), or continues it as raw text (``run`` is None)."""

    group: Request
    run: ChatRun | None
    tokenizer: Tokenizer

    @classmethod
    def of(cls, body: RequestBody[PromptOptions], llm: ServedModel) -> OllamaGenerate:
        """Read a body. Raises InvalidRequest if a field is wrong."""
        fields, size = body.fields, llm.inputs.vocabulary
        prompt, suffix, system, raw = fields.prompt, fields.suffix, fields.system, fields.raw
        schema, variables, context = fields.answer_schema, fields.variables(llm), fields.context
        if any(token >= size for token in context):
            raise InvalidRequest(f"context={brief(context)}: must be a list of token ids below {size:,}")
        options = options_of(body, llm.recommended)
        if suffix or raw or not llm.tokenizer.chat_template:
            for field, given in (("context", context), ("system", system), ("think", variables.get("enable_thinking"))):
                if given:
                    raise InvalidRequest(
                        f"{field} needs the chat template: "
                        f"leave {field} out with raw or suffix, or if the model has no template"
                    )
        if suffix:
            if schema is not None:
                raise InvalidRequest("format does not go with suffix: remove one of the two")
            ids, ends = infill_prompt(llm.tokenizer, prompt, suffix)
            add_stop_tokens(options, ends)
            return cls(llm.request(ids, **options), None, llm.tokenizer)
        if raw or not llm.tokenizer.chat_template:
            if schema is not None:
                options["json_schema"] = closed(schema)
            return cls(llm.request(prompt, **options), None, llm.tokenizer)
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        asked = Conversation(
            messages, options, answer_schema=schema, schema_field="format", variables=variables, prefix=context
        )
        run = ChatRun(llm, asked)
        return cls(run.group, run, llm.tokenizer)

    @property
    def groups(self) -> list[Request]:
        """The engine request, whose options are already checked."""
        return [self.group]

    def answer(self, name: str, number: str) -> dict[str, Any]:
        """Response body of the model ``name``."""
        (generation,) = self.group.results()
        answer = self.run.answer(generation) if self.run else ChatAnswer(generation.text)
        return last_chunk(name, generation, **_content(answer), **self._context(), **self._logprobs().all())

    async def stream(self, name: str, number: str) -> AsyncGenerator[dict[str, Any], None]:
        """Chunks of the response."""
        logprobs = self._logprobs()
        if self.run:
            async with aclosing(self.run.stream()) as answers:
                async for _, parts in answers:
                    logprobs.streamed += 1
                    if parts:
                        yield chunk(name, **_content(assemble(parts)), **logprobs.next())
        else:
            async with aclosing(self.group.stream()) as outputs:
                async for output in outputs:
                    logprobs.streamed += 1
                    if output.text:
                        yield chunk(name, response=output.text, **logprobs.next())
        (generation,) = self.group.results()
        yield last_chunk(name, generation, response="", **self._context(), **logprobs.next())

    def _context(self) -> dict[str, Any]:
        """Tokens so far. To continue the text, the next request may send these tokens in ``context``."""
        return {"context": [*self.group.prompt, *self.group.outputs[0].ids]} if self.run else {}

    def _logprobs(self) -> ChunkLogprobs:
        return ChunkLogprobs(self.group, self.tokenizer)


def _content(answer: ChatAnswer) -> dict[str, Any]:
    return {"response": answer.text, **({"thinking": answer.reasoning} if answer.reasoning else {})}


# /api/pull: downloads a model and reports its progress.

EVERY = 0.2  # seconds between two lines


class _PullProgress:
    """A ``DownloadProgress`` that stores its last ``state``, which the event loop reads."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"status": "pulling manifest"}

    def update(self, done_bytes: int, total_bytes: int | None, label: str) -> None:
        """Store the state. Called by the download thread."""
        digest = "sha256:" + hashlib.sha256(label.encode()).hexdigest()
        total = {} if total_bytes is None else {"total": total_bytes}
        self.state = {"status": f"pulling {label}", "digest": digest, **total, "completed": done_bytes}


async def pulling(models: ModelPool, name: str) -> AsyncGenerator[dict[str, Any], None]:
    """Progress lines of a download. ``digest``, the hash of a file's name, lets clients tell files apart."""
    progress = _PullProgress()
    work, sent = asyncio.ensure_future(models.pulled(name, progress)), None
    try:
        while not work.done():
            await asyncio.wait({work}, timeout=EVERY)
            if (state := progress.state) is not sent and not work.done():
                sent = state
                yield state
        work.result()
        yield {"status": "success"}
    finally:
        work.cancel()
