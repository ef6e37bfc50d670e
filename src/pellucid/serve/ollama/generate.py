"""/api/generate: answers or continues a prompt; with ``suffix``, fills the gap between prompt and suffix."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pellucid.engine.text_group import TextGroup
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.chat.answer import ChatAnswer, assembled
from pellucid.serve.chat.request import ChatRun, Conversation
from pellucid.serve.closed_schema import closed
from pellucid.serve.generation_options import add_stop_tokens
from pellucid.serve.model import ServedModel
from pellucid.serve.ollama.fields import PromptOptions, options_of
from pellucid.serve.ollama.response_parts import PieceLogprobs, ended, piece
from pellucid.serve.request_body import RequestBody
from pellucid.tokenize import Tokenizer
from pellucid.tokenize.infill import infill_prompt


@dataclass(frozen=True)
class OllamaGenerate:
    """A prompt that runs: as a user message in the chat template (``run``), or raw (``run`` is None)."""

    group: TextGroup
    run: ChatRun | None
    tokenizer: Tokenizer

    @classmethod
    def of(cls, body: RequestBody[PromptOptions], llm: ServedModel) -> OllamaGenerate:
        """Read a body.

        Raises:
            InvalidRequest: a field is wrong; the message names it.
        """
        fields, size = body.fields, llm.inputs.vocabulary
        prompt, suffix, system, raw = fields.prompt, fields.suffix, fields.system, fields.raw
        shape, variables, before = fields.answer_schema, fields.variables(llm), fields.context
        if any(token >= size for token in before):
            raise InvalidRequest(f"context={brief(before)}: must be a list of token ids below {size:,}")
        options = options_of(body, llm.recommended)
        if suffix or raw or not llm.tokenizer.chat_template:
            for field, given in (
                ("context", before),
                ("system", system),
                ("think", variables.get("enable_thinking")),
            ):
                if given:
                    raise InvalidRequest(
                        f"{field} needs the chat template: leave it out with raw, suffix or a model without one"
                    )
        if suffix:
            if shape is not None:
                raise InvalidRequest("format does not go with suffix: remove one of the two")
            ids, ends = infill_prompt(llm.tokenizer, prompt, suffix)
            add_stop_tokens(options, ends)
            return cls(llm.request(ids, **options), None, llm.tokenizer)
        if raw or not llm.tokenizer.chat_template:
            if shape is not None:
                options["json_schema"] = closed(shape)
            return cls(llm.request(prompt, **options), None, llm.tokenizer)
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        asked = Conversation(
            messages, options, shape=shape, shape_name="format", variables=variables, before=before
        )
        run = ChatRun(llm, asked)
        return cls(run.group, run, llm.tokenizer)

    @property
    def groups(self) -> list[TextGroup]:
        """The engine request, checked."""
        return [self.group]

    def answer(self, name: str, number: str) -> dict[str, Any]:
        """Response body of the model ``name``."""
        (made,) = self.group.results()
        found = self.run.answer(made) if self.run else ChatAnswer(made.text)
        return ended(name, made, **_content(found), **self._context(), **self._logprobs().all())

    async def stream(self, name: str, number: str) -> AsyncGenerator[dict[str, Any], None]:
        """Chunks of the response."""
        logprobs = self._logprobs()
        if self.run:
            async with aclosing(self.run.stream()) as answers:
                async for _, _, parts in answers:
                    logprobs.heard += 1
                    if parts:
                        yield piece(name, **_content(assembled(parts)), **logprobs.next())
        else:
            async with aclosing(self.group.stream()) as outputs:
                async for _, output in outputs:
                    logprobs.heard += 1
                    if output.text:
                        yield piece(name, response=output.text, **logprobs.next())
        (made,) = self.group.results()
        yield ended(name, made, response="", **self._context(), **logprobs.next())

    def _context(self) -> dict[str, Any]:
        """Tokens so far. The next request may send them in ``context``, to continue after them."""
        return {"context": [*self.group.prompt, *self.group.builders[0].ids]} if self.run else {}

    def _logprobs(self) -> PieceLogprobs:
        return PieceLogprobs(self.group, self.tokenizer)


def _content(answer: ChatAnswer) -> dict[str, Any]:
    return {"response": answer.text, **({"thinking": answer.reasoning} if answer.reasoning else {})}
