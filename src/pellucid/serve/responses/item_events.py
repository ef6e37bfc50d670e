"""Items of a response and their events: an item is added, grows, and is done."""

from __future__ import annotations

from typing import Any, TypeAlias

from pellucid.serve.chat.answer_parser import AnswerReasoning, AnswerText, CallStart, Part

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
