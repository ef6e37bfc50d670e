"""/v1/responses: the response as items of reasoning, text and tool calls."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from pellucid.engine.output import Generation
from pellucid.serve.body import Body
from pellucid.serve.chat.request import ChatRun, ChatRunRequest
from pellucid.serve.model import ServedModel
from pellucid.serve.responses.events import ItemEvents
from pellucid.serve.responses.request import conversation_of, items_of
from pellucid.serve.responses.shown import shown
from pellucid.serve.responses.store import OwnResponses
from pellucid.serve.responses.truncation import truncated, truncates


@dataclass(frozen=True)
class ResponseRequest(ChatRunRequest):
    """A conversation that runs, and the request fields that the response repeats (``shown``).

    ``stores``: the response and the ``items`` of the input are stored among the client's ``own`` responses.
    """

    shown: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]
    own: OwnResponses
    stores: bool
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(
        cls, body: Body, fields: Mapping[str, Any], llm: ServedModel, own: OwnResponses
    ) -> ResponseRequest:
        """Read a body. ``fields`` are all its fields, unchanged.

        Raises:
            InvalidRequest: a field is wrong; the message names it.
            NotFound: a referenced response or item is not stored.
        """
        stores, items, cuts = body.flag("store", True), items_of(body, own), truncates(body)
        for name in ("user", "safety_identifier", "prompt_cache_key"):
            body.text(name)
        body.count("max_tool_calls", 1, 1 << 31)
        asked = conversation_of(body, items, llm.recommended, own)
        run = ChatRun(llm, truncated(llm, asked) if cuts else asked)
        return cls(run, shown(fields, asked.options), items, own, stores)

    def answer(self, name: str, number: str) -> dict[str, Any]:
        """Response body of the model ``name`` with the id ``number``."""
        (made,) = self.run.group.results()
        items = ItemEvents(number)
        for part in self.run.parser().push(made.text, last=True):
            items.of(part)
        items.end(cut=_is_cut(made))
        return self._ended(name, number, made, items)

    async def stream(self, name: str, number: str) -> AsyncGenerator[dict[str, Any], None]:
        """Response as a stream of events."""
        items, count = ItemEvents(number), 0
        begun = self._response(name, number, None, items)
        async with aclosing(self.run.stream()) as outputs:  # before the first event: a full queue raises here
            for kind in ("response.created", "response.in_progress"):
                yield {"type": kind, "sequence_number": count, "response": begun}
                count += 1
            async for _, parts in outputs:
                for part in parts:
                    for event in items.of(part):
                        yield {**event, "sequence_number": count}
                        count += 1
        (made,) = self.run.group.results()
        for event in items.end(cut=_is_cut(made)):
            yield {**event, "sequence_number": count}
            count += 1
        response = self._ended(name, number, made, items)
        kind = f"response.{response['status']}"
        yield {"type": kind, "sequence_number": count, "response": response}

    def _ended(self, name: str, number: str, made: Generation, items: ItemEvents) -> dict[str, Any]:
        """The finished response. It is stored if the request asks for it."""
        body = self._response(name, number, made, items)
        if self.stores:
            self.own.put(body, [_numbered(one, f"{number}_{at}") for at, one in enumerate(self.items)])
        return body

    def _response(self, name: str, number: str, made: Generation | None, items: ItemEvents) -> dict[str, Any]:
        """The response so far. ``made`` is None until it has ended."""
        cut = made is not None and _is_cut(made)
        status = "in_progress" if made is None else "incomplete" if cut else "completed"
        return {
            "id": f"resp_{number}",
            "object": "response",
            "created_at": self.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "model": name,
            "output": items.items,
            "usage": None if made is None else _usage(made, self.run.tokens(items.reasoning)),
            **self.shown,
        }


def _numbered(item: Mapping[str, Any], number: str) -> dict[str, Any]:
    """Give an input item an id."""
    kind = item.get("type", "message")
    return {"id": f"{kind}_{number}", "type": kind, "status": "completed", **item}


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
