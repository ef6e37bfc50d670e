"""/api/generate: a prompt in, a text out; with ``suffix``, the text between the two."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pellucid.engine.text_group import TextGroup
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.body import Body, add_ends
from pellucid.serve.chat.answer import ChatAnswer, assembled
from pellucid.serve.chat.request import ChatRun, Conversation
from pellucid.serve.model import ServedModel
from pellucid.serve.ollama.fields import ended, options_of, piece, shape_of, thinking_of
from pellucid.tokenize.infill import infill_prompt


@dataclass(frozen=True)
class OllamaGenerate:
    """A prompt that runs: as a message of a user (``run``), or as it is."""

    group: TextGroup
    run: ChatRun | None

    @classmethod
    def of(cls, body: Body, llm: ServedModel) -> OllamaGenerate:
        """Read a body.

        Raises:
            InvalidRequest: a field is wrong; the message names it.
        """
        prompt, suffix, system = body.text("prompt") or "", body.text("suffix"), body.text("system")
        raw, shape, variables = body.flag("raw"), shape_of(body), thinking_of(body)
        if (context := body.take("context", [])) != []:
            raise InvalidRequest(
                f"context={brief(context)}: not supported; send the whole conversation to /api/chat"
            )
        options = options_of(body, llm.recommended)
        if suffix:
            ids, ends = infill_prompt(llm.tokenizer, prompt, suffix)
            add_ends(options, ends)
            return cls(llm.request(ids, **options), None)
        if raw or not llm.tokenizer.chat_template:
            if shape is not None:
                options["json_schema"] = shape
            return cls(llm.request(prompt, **options), None)
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        asked = Conversation(messages, options, shape=shape, shape_name="format", variables=variables)
        run = ChatRun(llm, asked)
        return cls(run.group, run)

    @property
    def groups(self) -> list[TextGroup]:
        """The request to the engine, checked."""
        return [self.group]

    def answer(self, name: str, number: str) -> dict[str, Any]:
        """The body of the answer of the model ``name``."""
        (made,) = self.group.results()
        found = self.run.answer(made) if self.run else ChatAnswer(made.text)
        return ended(name, made, **_content(found), context=[])

    async def stream(self, name: str, number: str) -> AsyncGenerator[dict[str, Any], None]:
        """The answer in pieces."""
        if self.run:
            async with aclosing(self.run.stream()) as answers:
                async for _, _, parts in answers:
                    if parts:
                        yield piece(name, **_content(assembled(parts)))
        else:
            async with aclosing(self.group.stream()) as outputs:
                async for _, output in outputs:
                    if output.text:
                        yield piece(name, response=output.text)
        yield ended(name, self.group.results()[0], response="", context=[])


def _content(answer: ChatAnswer) -> dict[str, Any]:
    return {"response": answer.text, **({"thinking": answer.reasoning} if answer.reasoning else {})}
