"""OpenAI's Responses API. The server stores responses for a while, so that later requests can continue them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.base_llm import BaseLLM
from pellucid.engine.output import Generation
from pellucid.errors import InvalidRequest, NotFound, brief
from pellucid.sample.step import options_of, owners
from pellucid.serve.api import NAMED_SSE, Api, ClientCall, Events, Route, json_response
from pellucid.serve.apis import responses_fields as fields
from pellucid.serve.chat.answer_parser import AnswerReasoning, AnswerText, CallStart, Part
from pellucid.serve.chat.chat_run import ChatRun, ChatRunRequest
from pellucid.serve.openai_parts import FIELD, error_body, receipt_field, scores_field, scores_of_token
from pellucid.serve.request_body import RequestBody
from pellucid.serve.response_store import OwnResponses
from pellucid.serve.routes import Tokens, generation_response, plain_route
from pellucid.util.checks import whole

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
        **{name: float(options.get(name, options_of(owners()[name])[name].default)) for name in SAMPLING},
    }


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
        if isinstance(part, CallStart):
            item = {"call_id": part.id, "name": part.name, "arguments": ""}
            return self._begin("function_call", "fc", item)
        if isinstance(part, AnswerText):
            begin = []
            if self._kind != "message":
                begin = self._begin("message", "msg", {"role": "assistant", "content": []})
                begin.append(self._event("response.content_part.added", part=_text_part(""), content_index=0))
            return [*begin, self._grown("response.output_text.delta", part.text, logprobs=[], content_index=0)]
        if isinstance(part, AnswerReasoning):
            begin = [] if self._kind == "reasoning" else self._begin("reasoning", "rs", {"summary": [], "content": []})
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
    def of(cls, body: RequestBody[fields.ResponseFields], llm: BaseLLM[Any], own: OwnResponses) -> ResponseRequest:
        items = fields.items_of(body.raw["input"], own)
        form = body.fields.text.format
        schema = None if form is None else form.answer_schema
        conversation = fields.conversation_of(body, items, llm.recommended, own, schema)
        cuts = body.fields.truncation == "auto"
        run = ChatRun(llm, fields.truncated(llm, conversation) if cuts else conversation)
        echoed = echoed_fields(body.raw, conversation.options)
        return cls(run, echoed, items, own, body.fields.store)

    def answer(self, name: str, number: str) -> dict[str, Any]:
        (generation,) = self.run.group.results()
        items = ItemEvents(number)
        for part in self.run.parser().push(generation.text, last=True):
            items.of(part)
        items.end(cut=_is_cut(generation))
        return self._ended(name, number, generation, items)

    async def stream(self, name: str, number: str, tokens: Tokens) -> Events:
        items, count = ItemEvents(number), 0
        begun = self._response(name, number, None, items)
        for kind in ("response.created", "response.in_progress"):
            yield {"type": kind, "sequence_number": count, "response": begun}
            count += 1
        scores = list[dict[str, Any]]()  # of tokens without an event of their own
        async for token in tokens:
            scores += scores_of_token(token.output, self.run.tokenizer).get(FIELD, [])
            for part in token.parts:
                for event in items.of(part):
                    yield {**event, "sequence_number": count, **({FIELD: scores} if scores else {})}
                    count, scores = count + 1, []
        (generation,) = self.run.group.results()
        for event in items.end(cut=_is_cut(generation)):
            yield {**event, "sequence_number": count}
            count += 1
        response = self._ended(name, number, generation, items)
        yield {"type": f"response.{response['status']}", "sequence_number": count, "response": response}

    def _ended(self, name: str, number: str, generation: Generation, items: ItemEvents) -> dict[str, Any]:
        """The finished response. The response is stored if ``stores`` is True."""
        body = self._response(name, number, generation, items)
        if self.stores:
            kinds = [one.get("type", "message") for one in self.items]
            ids = [{"id": f"{kind}_{number}_{at}", "type": kind} for at, kind in enumerate(kinds)]
            self.own.put(body, [{**own, "status": "completed", **one} for own, one in zip(ids, self.items)])
        return body

    def _response(self, name: str, number: str, generation: Generation | None, items: ItemEvents) -> dict[str, Any]:
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


# /v1/responses/ID/input_items: the input items of a response, page by page.

USUAL, MOST = 20, 100
NAMES = ("limit", "order", "after")


def input_items(items: Sequence[Mapping[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """A page of at most ``limit`` items ``after`` an id. The last item comes first, unless ``order`` is "asc"."""
    for name in query:
        if name not in NAMES:
            raise InvalidRequest(f"unknown option {brief(name)}: the query may have {', '.join(NAMES)}")
    given, order, after = query.get("limit", str(USUAL)), query.get("order", "desc"), query.get("after")
    digits = given.isascii() and given.isdigit() and len(given) < 10
    limit = whole("limit", int(given) if digits else given, 1, MOST)
    if order not in ("asc", "desc"):
        raise InvalidRequest(f"order={brief(order)}: must be asc or desc")
    ordered = list(items) if order == "asc" else list(reversed(items))
    if after is not None:
        places = [at for at, one in enumerate(ordered) if one["id"] == after]
        if not places:
            raise InvalidRequest(f"after={brief(after)}: the response has no item with this id")
        ordered = ordered[places[0] + 1 :]
    page = ordered[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(ordered) > limit,
    }


def _own(call: ClientCall) -> OwnResponses:
    return OwnResponses(call.responses, call.viewer.key)


async def _responses(call: ClientCall) -> Response:
    body, own = await call.read(fields.RESPONSE), _own(call)
    name, stream = call.model(body.fields.model), NAMED_SSE if body.fields.stream else None
    return await generation_response(call, name, lambda llm: ResponseRequest.of(body, llm, own), stream)


async def _input_tokens(call: ClientCall) -> Response:
    body, own = await call.read(fields.COUNT), _own(call)
    async with call.use(call.model(body.fields.model)) as llm:
        count = await run_in_threadpool(fields.counted, body, llm, own)
        return json_response({"object": "response.input_tokens", "input_tokens": count})


def _one(call: ClientCall) -> Mapping[str, Any]:
    for name, value in call.request.query_params.items():
        raise InvalidRequest(f"{name}={value[:80]!r}: a stored response is returned complete; leave it out")
    return _own(call).get(call.request.path_params["number"]).body


def _delete(call: ClientCall) -> dict[str, Any]:
    number = call.request.path_params["number"]
    _own(call).delete(number)
    return {"id": number, "object": "response", "deleted": True}


def _input_items(call: ClientCall) -> dict[str, Any]:
    return input_items(_own(call).get(call.request.path_params["number"]).input, call.request.query_params)


def _refused(why: str) -> Route:
    """A route that is not implemented. It only reports ``why``."""

    def run(call: ClientCall) -> None:
        raise NotFound(f"{call.request.method} {call.request.url.path}: {why}")

    return plain_route("Refused.", run)


RESPONSES = Api(
    "responses",
    {
        "POST /v1/responses": Route(_responses, "Answer a conversation.", fields.RESPONSE, NAMED_SSE.media_type),
        "GET /v1/responses": _refused("there is no WebSocket and no list of responses; use POST with stream=true"),
        "POST /v1/responses/input_tokens": Route(_input_tokens, "Count a conversation's tokens.", fields.COUNT),
        "POST /v1/responses/compact": _refused(
            'conversations are not compacted; truncation="auto" drops their first messages'
        ),
        "GET /v1/responses/{number}": plain_route("A stored response.", _one),
        "DELETE /v1/responses/{number}": plain_route("Delete a stored response.", _delete),
        "GET /v1/responses/{number}/input_items": plain_route("The input items of a stored response.", _input_items),
    },
    error_body,
)
