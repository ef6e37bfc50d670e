"""/v1/responses: the response as items of reasoning, text and tool calls."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from pellucid.engine.output import Generation
from pellucid.serve.chat.chat_run import ChatRun, ChatRunRequest
from pellucid.serve.openai.probe_scores import FIELD, scores_field, scores_of_token
from pellucid.serve.receipt_field import receipt_field
from pellucid.serve.request_body import RequestBody
from pellucid.serve.responses.echoed_fields import echoed_fields
from pellucid.serve.responses.input_conversation import conversation_of, items_of
from pellucid.serve.responses.item_events import ItemEvents
from pellucid.serve.responses.response_fields import ResponseFields
from pellucid.serve.responses.response_store import OwnResponses
from pellucid.serve.responses.truncation import truncated
from pellucid.serve.served_model import ServedModel


@dataclass(frozen=True)
class ResponseRequest(ChatRunRequest):
    """A request that runs on the engine, and the request fields that the response repeats (``echoed``).

    With ``stores``, the response and the ``items`` of the input are stored among the client's ``own`` responses.
    """

    echoed: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]
    own: OwnResponses
    stores: bool
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, body: RequestBody[ResponseFields], llm: ServedModel, own: OwnResponses) -> ResponseRequest:
        """Read a body.

        Raises:
            InvalidRequest: a field is wrong; the message names it.
            NotFound: a referenced response or item is not stored.
        """
        items = items_of(body.raw["input"], own)
        form = body.fields.text.format
        schema = None if form is None else form.answer_schema
        conversation = conversation_of(body, items, llm.recommended, own, schema)
        cuts = body.fields.truncation == "auto"
        run = ChatRun(llm, truncated(llm, conversation) if cuts else conversation)
        echoed = echoed_fields(body.raw, conversation.options)
        return cls(run, echoed, items, own, body.fields.store)

    def answer(self, name: str, number: str) -> dict[str, Any]:
        """Response body of the model ``name`` with the id ``number``."""
        (generation,) = self.run.group.results()
        items = ItemEvents(number)
        for part in self.run.parser().push(generation.text, last=True):
            items.of(part)
        items.end(cut=_is_cut(generation))
        return self._ended(name, number, generation, items)

    async def stream(self, name: str, number: str) -> AsyncGenerator[dict[str, Any], None]:
        """Response as a stream of events."""
        items, count = ItemEvents(number), 0
        begun = self._response(name, number, None, items)
        # Start the request before the first event, so that the error of a full queue sets the HTTP status.
        async with aclosing(self.run.stream()) as outputs:
            for kind in ("response.created", "response.in_progress"):
                yield {"type": kind, "sequence_number": count, "response": begun}
                count += 1
            scores = list[dict[str, Any]]()  # of tokens without an event of their own
            async for token, parts in outputs:
                scores += scores_of_token(token, self.run.tokenizer).get(FIELD, [])
                for part in parts:
                    for event in items.of(part):
                        yield {**event, "sequence_number": count, **({FIELD: scores} if scores else {})}
                        count, scores = count + 1, []
        (generation,) = self.run.group.results()
        for event in items.end(cut=_is_cut(generation)):
            yield {**event, "sequence_number": count}
            count += 1
        response = self._ended(name, number, generation, items)
        kind = f"response.{response['status']}"
        yield {"type": kind, "sequence_number": count, "response": response}

    def _ended(self, name: str, number: str, generation: Generation, items: ItemEvents) -> dict[str, Any]:
        """The finished response. The response is stored if ``stores`` is True."""
        body = self._response(name, number, generation, items)
        if self.stores:
            self.own.put(body, [_numbered(one, f"{number}_{at}") for at, one in enumerate(self.items)])
        return body

    def _response(
        self, name: str, number: str, generation: Generation | None, items: ItemEvents
    ) -> dict[str, Any]:
        """The response so far. ``generation`` is None until the generation has ended."""
        cut = generation is not None and _is_cut(generation)
        scores = {} if generation is None else scores_field(self.run.group.outputs[0], self.run.tokenizer)
        status = "in_progress" if generation is None else "incomplete" if cut else "completed"
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
            "usage": None if generation is None else _usage(generation, self.run.tokens(items.reasoning)),
            **self.echoed,
            **receipt_field(generation),
            **scores,
        }


def _numbered(item: Mapping[str, Any], number: str) -> dict[str, Any]:
    """Give an input item an id."""
    kind = item.get("type", "message")
    return {"id": f"{kind}_{number}", "type": kind, "status": "completed", **item}


def _is_cut(generation: Generation) -> bool:
    return generation.finish_reason in ("length", "time")


def _usage(generation: Generation, reasoning: int) -> dict[str, Any]:
    usage = generation.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.generated_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": usage.prompt_tokens + usage.generated_tokens,
    }
