"""Prompts in the forms of llama.cpp's server: a string, token ids, both mixed, or an object with a string.

Control tokens in text are parsed, because clients of llama.cpp render chat templates themselves or with
/apply-template, and send the result. BOS is added before a string, and before a list that begins with a string.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

from msgspec import Meta

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.chat.messages import joined_texts
from pellucid.serve.request_body import Fields, TokenId
from pellucid.serve.served_model import ServedModel
from pellucid.util.checks import token_id

MOST_PROMPTS = 1024
MOST_PARTS = 1 << 20
KEYS = ("prompt_string", "content", "multimodal_data")
FORMS = "a text, token ids, both in one list, or an object with prompt_string"


class PromptObject(Fields, frozen=True):
    """A prompt with its text in ``prompt_string``, or in the text parts of ``content``."""

    prompt_string: str | None = None
    content: list[Any] | None = None
    multimodal_data: Sequence[Any] = ()


LlamaPrompts: TypeAlias = Annotated[
    str | TokenId | PromptObject | list[str | TokenId | PromptObject | list[str | TokenId]],
    Meta(title=f"{FORMS}, or a list of these"),
]


def prompts_of(llm: ServedModel, name: str, value: Any) -> tuple[list[list[int]], bool]:
    """Token ids of each prompt of the field ``name``, and True if the field is a list of prompts.

    Raises:
        InvalidRequest: the value has another form, or a token id is not in the vocabulary.
    """
    if _is_one(value):
        return [_ids(llm, name, value)], False
    if not value:
        raise InvalidRequest(f"{name}=[]: must be {FORMS}, or a list of these")
    if len(value) > MOST_PROMPTS:
        raise InvalidRequest(f"{name} has {len(value):,} prompts; the limit is {MOST_PROMPTS:,}: send fewer")
    return [_ids(llm, f"{name}[{at}]", one) for at, one in enumerate(value)], True


def _is_one(value: Any) -> bool:
    """True if a value is a single prompt. A list that contains a number is a single prompt."""
    return not isinstance(value, list) or any(type(one) is int for one in value)


def _ids(llm: ServedModel, name: str, value: Any) -> list[int]:
    if isinstance(value, Mapping):
        value = _text_of(name, value)
    parts = value if isinstance(value, list) else [value]
    if not parts or len(parts) > MOST_PARTS:
        raise InvalidRequest(f"{name}={brief(value)}: must be {FORMS}")
    ids, size, encode = list[int](), llm.inputs.vocabulary, llm.tokenizer.encode
    for at, part in enumerate(parts):
        if isinstance(part, str):
            ids += encode(part, add_special=at == 0, parse_special=True)
        elif type(part) is int:
            ids.append(token_id(name, part, size))
        else:
            raise InvalidRequest(f"{name}={brief(part)}: must be {FORMS}")
    return ids


def _text_of(name: str, value: Mapping[str, Any]) -> str:
    """Text of an object: ``prompt_string``, or the text parts of ``content``."""
    if value.get("multimodal_data"):
        raise InvalidRequest(f"{name}.multimodal_data: only text is supported, no images and no audio")
    if unknown := value.keys() - KEYS:
        raise InvalidRequest(
            f"{name} has {brief(min(unknown, key=str))}: it may have {' or '.join(KEYS[:2])}"
        )
    if isinstance(text := value.get("prompt_string"), str):
        return text
    if isinstance(parts := value.get("content"), list):
        return joined_texts(parts, f"{name}.content", ("text",))
    raise InvalidRequest(f"{name}={brief(value)}: must be {FORMS}")
