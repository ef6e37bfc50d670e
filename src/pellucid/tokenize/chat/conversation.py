"""Checks the input of a chat template and converts it to plain values: texts, numbers, lists and mappings.

Messages are converted as in ``transformers`` 5.24 (``tokenization_utils_base.py: apply_chat_template``,
``utils/chat_template_utils.py``). Objects with fields become mappings. Keys of a message whose value is None are left
out, because templates would print the word None. The model's reasoning is stored under the names that templates use.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pellucid.errors import InvalidRequest, TemplateError, brief, reason, shown
from pellucid.util.checks import characters

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys of a message that may hold the model's reasoning. The value of the first key that is present becomes
``reasoning_content``. It also becomes ``thinking`` if the message has no ``thinking``."""

LIST_VARIABLES = {"tools": "each a JSON schema", "documents": "each with a title and a text"}
"""Variables that are lists of mappings, with a description for error messages."""

MAX_DEPTH = 100  # nesting depth of lists and mappings
MAX_INTEGER_BITS = 8192  # bits of the largest integer
OTHER_THAN_TEXT = re.compile("image|video|audio|file")
"""Matches the type of a content part that is not text, such as "image_url" or "input_audio"."""

Message = dict[str, Any]


def conversation(messages: Any) -> list[Message]:
    """Convert the messages to the form that templates receive.

    Raises InvalidRequest: ``messages`` is not a list, is empty, or has an item that is not a mapping or a value that is
    not a text, number, list or mapping. The error message names the path of the value.
    """
    converted = _mappings("messages", messages, 'such as {"role": "user", "content": "Hi"}')
    if not converted:
        raise InvalidRequest("messages is empty: give at least one message")
    for at, message in enumerate(converted):
        refuse_other_than_text(message.get("content"), f"messages[{at}].content")
        if texts := _parts_of_text(message.get("content")):
            message["content"] = "".join(texts)  # most templates take only a text
    return [_aliased({key: value for key, value in message.items() if value is not None}) for message in converted]


def _parts_of_text(content: Any) -> list[str]:
    """The texts of OpenAI's content parts, ``{"type": "text", "text": "Hi"}``; [] if other values are in the list."""
    parts = content if isinstance(content, list) else []
    found = (part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text")
    texts = [text for text in found if isinstance(text, str)]
    return texts if len(texts) == len(parts) else []


def refuse_other_than_text(content: Any, where: str) -> None:
    """Refuse content parts other than text, such as images: a template would leave them out silently."""
    for at, part in enumerate(content if isinstance(content, list) else []):
        kind = part.get("type", "") if isinstance(part, dict) else ""
        if isinstance(kind, str) and (match := OTHER_THAN_TEXT.search(kind)):
            raise InvalidRequest(f"{where}[{at}] is of type {kind!r}: only text is supported, not {match[0]}")


def template_variables(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert all other variables to the form that templates receive; ``tools`` and ``documents`` are None or lists.

    Raises :class:`InvalidRequest` for values of other types.
    """
    converted = dict[str, Any]()
    for name, value in values.items():
        example = LIST_VARIABLES.get(name)
        converted[name] = (
            _plain(value, (name,)) if example is None or value is None else _mappings(name, value, example)
        )
    return converted


def is_message(value: Any) -> bool:
    """True if a value can be a message of a conversation."""
    return isinstance(value, Mapping) or _has_fields(value)


def guard(messages: Sequence[Message], control_tokens: Iterable[str]) -> tuple[list[Message], str]:
    """Insert a mark into each control token of the messages. Return the messages and the mark.

    With the mark inside, the tokenizer does not recognize the control token, so a user cannot inject one. The mark is a
    noncharacter that no message contains. It is inserted after the first character of the control token. The
    assistant's messages stay unchanged. The encoder removes the mark before the pre-tokenizer runs. Raises
    InvalidRequest: the messages contain all noncharacters that can be a mark.
    """
    broken, mark = _breaker(_texts(messages), control_tokens)

    def guarded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: item if key in ("role", "type") else guarded(item) for key, item in value.items()}
        return [guarded(item) for item in value] if isinstance(value, list) else broken(value)

    return [message if message.get("role") == "assistant" else guarded(message) for message in messages], mark


def guard_values(values: Any, control_tokens: Iterable[str]) -> tuple[Any, str]:
    """As ``guard`` for plain values, whose keys are a user's text too. Returns the values and the mark.

    Raises: as ``guard``.
    """
    broken, mark = _breaker(_texts(values, keys=True), control_tokens)

    def guarded(value: Any) -> Any:
        if isinstance(value, dict):
            return {broken(key): guarded(item) for key, item in value.items()}
        return [guarded(item) for item in value] if isinstance(value, list) else broken(value)

    return guarded(values), mark


def _breaker(texts: Iterable[str], control_tokens: Iterable[str]) -> tuple[Callable[[Any], Any], str]:
    """A function that inserts a mark into each control token of a text, and the mark, which no text contains."""
    characters = set[str]().union(*texts)
    mark = _unused(characters)
    present = sorted((token for token in control_tokens if token and token[0] in characters), key=len, reverse=True)

    def broken(value: Any) -> Any:
        if isinstance(value, str):
            for token in present:
                if token in value:
                    value = value.replace(token, token[0] + mark + token[1:])
        return value

    return broken, mark


def with_end_mark(messages: Sequence[Message]) -> tuple[list[Message], str]:
    """Append a mark to the content of the last message. Return the messages and the mark.

    Raises InvalidRequest: the content of the last message is not a text, or as ``guard``.
    """
    last = messages[-1]
    if not isinstance(content := last.get("content"), str):
        raise InvalidRequest(
            f"messages[{len(messages) - 1}].content={brief(content)}: only text content can be continued"
        )
    end = _unused(set[str]().union(*_texts(list(messages))) | set(last.get("content", "")))
    return [*messages[:-1], {**last, "content": content + end}], end


def text_before(end: str, text: str) -> str:
    """The text before the mark ``end``. Raises TemplateError: the text does not contain the mark."""
    before, separator, _ = text.rpartition(end)
    if not separator:
        raise TemplateError("the chat template leaves out the last message, so the message cannot be continued")
    return before


def _unused(characters: set[str]) -> str:
    mark = next((chr(code) for code in range(0xFDD0, 0xFDF0) if chr(code) not in characters), None)
    if mark is None:
        raise InvalidRequest("the messages hold all noncharacters U+FDD0 to U+FDEF: remove at least one of them")
    return mark


def _mappings(name: str, value: Any, example: str) -> list[Message]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise InvalidRequest(f"{name}={brief(value)}: must be a list of mappings, {example}")
    converted = list[Message]()
    for at, item in enumerate(value):
        plain = _plain(item, (name, at)) if is_message(item) else None
        if not isinstance(plain, dict):
            raise InvalidRequest(f"{name}[{at}]={brief(item)}: must be a mapping, {example}")
        converted.append(plain)
    return converted


def _aliased(message: Message) -> Message:
    reasoning = next((message[name] for name in REASONING if name in message), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _plain(value: Any, path: tuple[str | int, ...]) -> Any:
    """A value converted to JSON's types; a tuple becomes a list. ``path`` locates it for error messages."""
    if value is None or type(value) in (bool, float):
        return value
    if isinstance(value, str):
        return characters(_place(path), str.__str__(value))
    if isinstance(value, int):
        if value.bit_length() > MAX_INTEGER_BITS:
            raise InvalidRequest(
                f"{_place(path)}: an integer of {value.bit_length():,} bits; {MAX_INTEGER_BITS:,} are allowed"
            )
        return int(value)
    if isinstance(value, float):
        return float(value)
    if _has_fields(value):
        try:
            value = _fields(value)
        except Exception as error:  # raised by the caller's own code
            kind = shown(type(value).__name__)
            raise InvalidRequest(
                f"{_place(path)}: the fields of this {kind} cannot be read: {type(error).__name__}: {reason(error)}"
            ) from error
    if len(path) > MAX_DEPTH:
        raise InvalidRequest(f"{_place(path)}: lists and mappings are nested more than {MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InvalidRequest(f"{_place(path)} has the key {brief(key)}: keys must be texts")
        return {str.__str__(key): _plain(item, (*path, key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, (*path, at)) for at, item in enumerate(value)]
    import numpy as np

    if isinstance(value, np.floating):  # ``item()`` of a long double is a long double too
        return float(value)
    if isinstance(value, np.generic) and not isinstance(item := value.item(), np.generic):
        return _plain(item, path)
    raise InvalidRequest(
        f"{_place(path)}={brief(value)}: a chat template takes texts, numbers, lists and mappings, not "
        f"{shown(type(value).__name__)}"
    )


def _has_fields(value: Any) -> bool:
    """True if a value is an instance of a dataclass or of a pydantic model."""
    if isinstance(value, type):
        return False
    return dataclasses.is_dataclass(value) or callable(getattr(value, "model_dump", None))


def _fields(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return value.model_dump()


def _place(path: tuple[str | int, ...]) -> str:
    """The path of a value as text, such as ``messages[0].content``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path[1:])
    return shown(str(path[0]) + "".join(parts))


def _texts(value: Any, *, keys: bool = False) -> Iterator[str]:
    """All texts in a plain value; with ``keys`` also the keys of mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        if keys:
            yield from value
        for item in value.values():
            yield from _texts(item, keys=keys)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, keys=keys)
