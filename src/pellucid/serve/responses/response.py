"""/v1/responses: the response as items of reasoning, text and tool calls."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

from pellucid.engine.output import Generation
from pellucid.sample.step import owners
from pellucid.serve.chat.answer_parser import AnswerReasoning, AnswerText, CallStart, Part
from pellucid.serve.chat.chat_run import ChatRun, ChatRunRequest
from pellucid.serve.openai.probe_scores import FIELD, scores_field, scores_of_token
from pellucid.serve.receipt_field import receipt_field
from pellucid.serve.request_body import RequestBody
from pellucid.serve.responses.input_conversation import conversation_of, items_of
from pellucid.serve.responses.response_fields import ResponseFields
from pellucid.serve.responses.response_store import OwnResponses
from pellucid.serve.responses.truncation import truncated
from pellucid.serve.served_model import ServedModel

# Request fields that a response repeats, with their defaults.
#
# Source: https://github.com/openresponses/openresponses, ``ResponseResource``

REPEATED: Mapping[str, Any] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "safety_identifier": None,
    "store": True,
    "tool_choice": "auto",
    "top_logprobs": 0,
    "truncation": "disabled",
    "user": None,
}
FORMAT: Mapping[str, Any] = {"type": "text"}
SCHEMA_FORMAT: Mapping[str, Any] = {"name": "response", "description": None, "strict": True}
TOOL: Mapping[str, Any] = {"description": None, "parameters": None, "strict": True}
SAMPLING = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
"""Options whose values a response reports. A value comes from the request, the model file or the defaults."""


def echoed_fields(given: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Response fields for a request with the fields ``given`` that ran with these ``options``."""
    repeated = {name: usual if given.get(name) is None else given[name] for name, usual in REPEATED.items()}
    text, reasoning = given.get("text") or {}, given.get("reasoning") or {}
    form = text.get("format") or FORMAT
    if form["type"] == "json_schema":
        form = {**SCHEMA_FORMAT, **form}
    return {
        **repeated,
        "service_tier": "default",
        "text": {**text, "format": form},
        "reasoning": {"effort": None, "summary": None, **reasoning},
        "tools": [{**TOOL, **one} for one in given.get("tools") or []],
        **{name: float(options.get(name, _usual(name))) for name in SAMPLING},
    }


def _usual(name: str) -> Any:
    """Default of a sampler option."""
    return next(one.default for one in fields(owners()[name]) if one.name == name)


# Items of a response and their events: an item is added, grows, and is done.

Event: TypeAlias = "dict[str, Any]"


class ItemEvents:
    """Turns the parts of an answer into items, one item after another. ``number`` is the response's id."""

    def __init__(self, number: str) -> None:
        self.items: list[dict[str, Any]] = []
        self._number, self._kind, self._text = number, "", ""

    @property
    def reasoning(self) -> str:
        """Reasoning text of all finished items."""
        parts = (part for item in self.items if item["type"] == "reasoning" for part in item["content"])
        return "".join(part["text"] for part in parts)

    def of(self, part: Part) -> list[Event]:
        """Events of a part."""
        if isinstance(part, CallStart):
            item = {"call_id": part.id, "name": part.name, "arguments": ""}
            return self._begin("function_call", "fc", item)
        if isinstance(part, AnswerText):
            begin = [] if self._kind == "message" else self._begin_text()
            return [
                *begin,
                self._grown("response.output_text.delta", part.text, logprobs=[], content_index=0),
            ]
        if isinstance(part, AnswerReasoning):
            begin = (
                []
                if self._kind == "reasoning"
                else self._begin("reasoning", "rs", {"summary": [], "content": []})
            )
            return [*begin, self._grown("response.reasoning_text.delta", part.text, content_index=0)]
        return [self._grown("response.function_call_arguments.delta", part.text)]

    def end(self, *, cut: bool = False) -> list[Event]:
        """Events that end the last item. ``cut`` is True if the item is incomplete."""
        if not self._kind:
            return []
        kind, text, events = self._kind, self._text, list[Event]()
        self._kind, self._text = "", ""
        item = self.items[-1]
        if kind == "message":
            part = _text_part(text)
            events = [
                self._event("response.output_text.done", text=text, logprobs=[], content_index=0),
                self._event("response.content_part.done", part=part, content_index=0),
            ]
            item["content"] = [part]
        elif kind == "reasoning":
            events = [self._event("response.reasoning_text.done", text=text, content_index=0)]
            item["content"] = [{"type": "reasoning_text", "text": text}]
        else:
            events = [self._event("response.function_call_arguments.done", arguments=text, name=item["name"])]
            item["arguments"] = text
        item["status"] = "incomplete" if cut else "completed"
        return [*events, self._item_event("response.output_item.done")]

    def _begin(self, kind: str, letters: str, item: dict[str, Any]) -> list[Event]:
        ended = self.end()
        name = f"{letters}_{self._number}_{len(self.items)}"
        self._kind = kind
        self.items.append({"id": name, "type": kind, "status": "in_progress", **item})
        return [*ended, self._item_event("response.output_item.added")]

    def _begin_text(self) -> list[Event]:
        added = self._begin("message", "msg", {"role": "assistant", "content": []})
        return [*added, self._event("response.content_part.added", part=_text_part(""), content_index=0)]

    def _grown(self, kind: str, delta: str, **more: Any) -> Event:
        self._text += delta
        return self._event(kind, delta=delta, **more)

    def _event(self, kind: str, **more: Any) -> Event:
        return {"type": kind, "item_id": self.items[-1]["id"], "output_index": len(self.items) - 1, **more}

    def _item_event(self, kind: str) -> Event:
        return {"type": kind, "output_index": len(self.items) - 1, "item": dict(self.items[-1])}


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


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
