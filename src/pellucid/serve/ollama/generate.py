"""/api/generate: answers or continues a prompt; with ``suffix``, fills the gap between prompt and suffix."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pellucid.engine.request import Request
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.body import Body, add_ends
from pellucid.serve.chat.answer import ChatAnswer, assembled
from pellucid.serve.chat.request import ChatRun, Conversation
from pellucid.serve.model import ServedModel
from pellucid.serve.ollama.fields import PieceLogprobs, ended, options_of, piece, shape_of, thinking_of
from pellucid.serve.shape import closed
from pellucid.tokenize import Tokenizer
from pellucid.tokenize.infill import infill_prompt


@dataclass(frozen=True)
class OllamaGenerate:
    """A prompt that runs: as a user message in the chat template (``run``), or raw (``run`` is None)."""

    group: Request
    run: ChatRun | None
    tokenizer: Tokenizer

    @classmethod
    def of(cls, body: Body, llm: ServedModel) -> OllamaGenerate:
        """Read a body.

        Raises:
            InvalidRequest: a field is wrong; the message names it.
        """
        prompt, suffix, system = body.text("prompt") or "", body.text("suffix"), body.text("system")
        raw, shape, variables = body.flag("raw"), shape_of(body), thinking_of(body, llm)
        before = _context(body, llm)
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
            add_ends(options, ends)
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
    def groups(self) -> list[Request]:
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
                async for _, parts in answers:
                    logprobs.heard += 1
                    if parts:
                        yield piece(name, **_content(assembled(parts)), **logprobs.next())
        else:
            async with aclosing(self.group.stream()) as outputs:
                async for output in outputs:
                    logprobs.heard += 1
                    if output.text:
                        yield piece(name, response=output.text, **logprobs.next())
        (made,) = self.group.results()
        yield ended(name, made, response="", **self._context(), **logprobs.next())

    def _context(self) -> dict[str, Any]:
        """Tokens so far. The next request may send them in ``context``, to continue after them."""
        return {"context": [*self.group.prompt, *self.group.outputs[0].ids]} if self.run else {}

    def _logprobs(self) -> PieceLogprobs:
        return PieceLogprobs(self.group, self.tokenizer)


def _context(body: Body, llm: ServedModel) -> list[int]:
    """Tokens of the field ``context``, from an earlier response."""
    given, size = body.take("context", []), llm.inputs.vocabulary
    if not isinstance(given, list) or not all(type(one) is int and 0 <= one < size for one in given):
        raise InvalidRequest(f"context={brief(given)}: must be a list of token ids below {size:,}")
    return given


def _content(answer: ChatAnswer) -> dict[str, Any]:
    return {"response": answer.text, **({"thinking": answer.reasoning} if answer.reasoning else {})}
