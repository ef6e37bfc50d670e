"""/v1/responses: an answer in items of reasoning, text and calls."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pellucid.engine.output import Generation
from pellucid.serve.body import Body
from pellucid.serve.chat.request import ChatRun, ChatRunRequest
from pellucid.serve.model import ServedModel
from pellucid.serve.responses.events import ItemEvents
from pellucid.serve.responses.request import SHOWN, conversation_of


@dataclass(frozen=True)
class ResponseRequest(ChatRunRequest):
    """A conversation that runs, and the fields of the request that the answer repeats."""

    shown: Mapping[str, Any]

    @classmethod
    def of(cls, body: Body, fields: Mapping[str, Any], llm: ServedModel) -> ResponseRequest:
        """Read a body, whose ``fields`` were these.

        Raises:
            InvalidRequest: a field is wrong; the message names it.
        """
        run = ChatRun(llm, conversation_of(body, llm.recommended))
        shown = {name: fields.get(name) for name in SHOWN}
        shown["parallel_tool_calls"] = shown["parallel_tool_calls"] is not False
        shown["tools"], shown["tool_choice"] = fields.get("tools") or [], fields.get("tool_choice") or "auto"
        shown["text"] = fields.get("text") or {"format": {"type": "text"}}
        shown["reasoning"] = fields.get("reasoning") or {"effort": None, "summary": None}
        return cls(run, shown)

    def answer(self, name: str, number: str) -> dict[str, Any]:
        """The body of the answer ``number`` of the model ``name``."""
        (made,) = self.run.group.results()
        items = ItemEvents(number)
        for part in self.run.parser().push(made.text, last=True):
            items.of(part)
        items.end(cut=_is_cut(made))
        return self._response(name, number, made, items)

    async def stream(self, name: str, number: str) -> AsyncGenerator[dict[str, Any], None]:
        """The answer in events."""
        items, count = ItemEvents(number), 0
        begun = self._response(name, number, None, items)
        async with aclosing(self.run.stream()) as outputs:  # before the first event: the queue may be full
            for kind in ("response.created", "response.in_progress"):
                yield {"type": kind, "sequence_number": count, "response": begun}
                count += 1
            async for _, _, parts in outputs:
                for part in parts:
                    for event in items.of(part):
                        yield {**event, "sequence_number": count}
                        count += 1
        (made,) = self.run.group.results()
        for event in items.end(cut=_is_cut(made)):
            yield {**event, "sequence_number": count}
            count += 1
        response = self._response(name, number, made, items)
        kind = f"response.{response['status']}"
        yield {"type": kind, "sequence_number": count, "response": response}

    def _response(self, name: str, number: str, made: Generation | None, items: ItemEvents) -> dict[str, Any]:
        """The answer so far; ``made`` is None before it has ended."""
        cut = made is not None and _is_cut(made)
        return {
            "id": f"resp_{number}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress" if made is None else "incomplete" if cut else "completed",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "model": name,
            "output": items.items,
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            "usage": None if made is None else _usage(made, self.run.tokens(items.reasoning)),
            **self.shown,
        }


def _is_cut(made: Generation) -> bool:
    return made.finish_reason in ("length", "time")


def _usage(made: Generation, reasoning: int) -> dict[str, Any]:
    usage = made.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.generated_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": usage.prompt_tokens + usage.generated_tokens,
    }
