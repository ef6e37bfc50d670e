"""``truncation: "auto"``: drops the first messages of a conversation until it fits into the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pellucid.errors import ContextOverflow
from pellucid.serve.chat.chat_run import Conversation, prompt_of
from pellucid.serve.request_body import RequestBody
from pellucid.serve.responses.input_conversation import conversation_of, items_of
from pellucid.serve.responses.response_fields import InputFields
from pellucid.serve.responses.response_store import OwnResponses
from pellucid.serve.served_model import ServedModel

USUAL_ROOM = 512  # tokens of room for the answer if the request does not limit it


def truncated(llm: ServedModel, conversation: Conversation) -> Conversation:
    """Drop the first messages of a conversation, as few as possible, so that the answer has room.

    The room is the request's limit of tokens (512 without a limit), but at most a quarter of the context. System
    messages at the beginning and the last message stay. A tool message is dropped with its call.

    Raises:
        ContextOverflow: the messages that must stay do not fit.
        InvalidRequest: a message is wrong.
    """
    messages = list(conversation.messages)
    fixed = next((at for at, one in enumerate(messages) if one.get("role") not in ("system", "developer")), 0)
    limit = llm.context - _room(llm, conversation)

    def without(count: int) -> Conversation:
        return replace(conversation, messages=[*messages[:fixed], *messages[fixed + count :]])

    def fits(count: int) -> bool:
        try:
            return len(prompt_of(llm, without(count))) <= limit
        except ContextOverflow:
            return False

    if fits(0):
        return conversation
    rest = messages[fixed:]
    # The remaining messages begin with a user message if possible.
    for roles in (("user",), ("user", "assistant")):
        starts = [at for at, one in enumerate(rest) if at and one.get("role") in roles]
        if starts and fits(starts[-1]):
            return without(_first(starts, fits))
    raise ContextOverflow(
        f"the prompt is too long: the system messages and the last message leave less than {llm.context - limit:,} of "
        f"{llm.context:,} tokens for the answer: shorten them"
    )


def counted(body: RequestBody[InputFields], llm: ServedModel, own: OwnResponses) -> int:
    """Number of tokens of a body's input.

    Raises:
        InvalidRequest: a field is wrong; the message names it.
        NotFound: a referenced item is not stored.
    """
    cuts = body.fields.truncation == "auto"
    conversation = conversation_of(body, items_of(body.raw["input"], own), {}, own)
    return len(prompt_of(llm, truncated(llm, conversation) if cuts else conversation, any_length=True))


def _room(llm: ServedModel, conversation: Conversation) -> int:
    """Number of tokens reserved for the answer."""
    limit = conversation.options.get("max_new_tokens")
    return min(limit if isinstance(limit, int) else USUAL_ROOM, llm.context // 4)


def _first(starts: Sequence[int], fits: Any) -> int:
    """The first of ascending numbers that fits, by binary search. The last number fits."""
    low, high = 0, len(starts) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(starts[middle]) else (middle + 1, high)
    return starts[low]
