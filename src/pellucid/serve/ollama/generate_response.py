"""/api/generate: answers or continues a prompt; with ``suffix``, fills the gap between prompt and suffix."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pellucid.engine.request import Request
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.chat.answer_parser import ChatAnswer, assemble
from pellucid.serve.chat.chat_run import ChatRun, Conversation
from pellucid.serve.closed_schema import closed
from pellucid.serve.generation_options import add_stop_tokens
from pellucid.serve.ollama.ollama_fields import PromptOptions, options_of
from pellucid.serve.ollama.response_chunks import ChunkLogprobs, chunk, last_chunk
from pellucid.serve.request_body import RequestBody
from pellucid.serve.served_model import ServedModel
from pellucid.tokenize import Tokenizer
from pellucid.tokenize.infill import infill_prompt


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
            for field, given in (
                ("context", context),
                ("system", system),
                ("think", variables.get("enable_thinking")),
            ):
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
            messages,
            options,
            answer_schema=schema,
            schema_field="format",
            variables=variables,
            prefix=context,
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
