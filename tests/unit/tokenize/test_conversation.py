"""The variables of a chat template: messages without None, reasoning under all names, and only plain values."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from enum import Enum
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.templates import chat
from tokenizer_cases import tokenizer

from pellucid.errors import InvalidRequest
from pellucid.tokenize.chat.conversation import conversation, guard, template_variables
from pellucid.tokenize.chat.template import RenderLimits

LLAMA3 = "{% for m in messages %}{{ m['role'] + ':' + m['content'] | trim }};{% endfor %}"
CALL = {"function": {"name": "f", "arguments": {"x": None}}}


class Role(str, Enum):
    user = "user"


@dataclasses.dataclass
class Message:
    role: str
    content: str | None
    tool_calls: Any = None


class Model:
    """The part of a pydantic model that matters here."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    def model_dump(self) -> dict[str, Any]:
        return self.fields


def test_content_that_is_none_is_no_word() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    assert chat(LLAMA3, messages) == "user:Hi;assistant:;"
    assert chat("{{ messages[0] }}", [{"role": "user", "content": None, "tool_calls": None}]) == "{'role': 'user'}"


def test_only_the_keys_of_a_message_are_left_out() -> None:
    assert conversation([{"role": "assistant", "tool_calls": [CALL]}])[0]["tool_calls"] == [CALL]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"thinking": "a"}, {"thinking": "a", "reasoning_content": "a"}),
        ({"reasoning": "a"}, {"thinking": "a", "reasoning": "a", "reasoning_content": "a"}),
        ({"reasoning_content": "a"}, {"thinking": "a", "reasoning_content": "a"}),
        ({"reasoning": "a", "thinking": "b"}, {"thinking": "b", "reasoning": "a", "reasoning_content": "b"}),
        ({"thinking": "b", "reasoning_content": "c", "reasoning": None}, {"thinking": "b", "reasoning_content": "c"}),
        ({"reasoning": ""}, {"thinking": "", "reasoning": "", "reasoning_content": ""}),
        ({"reasoning": None, "content": "a"}, {"content": "a"}),
    ],
)
def test_reasoning_goes_by_all_of_its_names(message: dict[str, Any], expected: dict[str, Any]) -> None:
    made = conversation([{"role": "assistant", **message}])[0]
    assert made == {"role": "assistant", **expected}


@pytest.mark.parametrize(
    "message",
    [
        OrderedDict(role="user", content="Hi"),
        MappingProxyType({"role": "user", "content": "Hi"}),
        {"role": Role.user, "content": np.str_("Hi")},
        Message("user", "Hi"),
        Model(role="user", content="Hi", tool_calls=None),
    ],
)
def test_messages_may_be_objects(message: Any) -> None:
    made = conversation((message,))
    assert made == [{"role": "user", "content": "Hi"}]
    assert [type(value) for value in made[0].values()] == [str, str]


def test_values_become_plain() -> None:
    given = {"a": (1, np.int64(2)), "b": np.float32(0.5), "c": np.bool_(False), "d": [Model(x=True)], "e": None}
    expected = {"a": [1, 2], "b": 0.5, "c": False, "d": [{"x": True}], "e": None}
    made = template_variables(given)
    assert repr(made) == repr(expected)


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "messages is empty: give at least one message$"),
        ((), "messages is empty: give at least one message$"),
        ("Hi", "^messages='Hi': must be a list of mappings, such as "),
        (None, "^messages=None: must be a list of mappings"),
        ({"role": "user"}, "^messages={'role': 'user'}: must be a list"),
        (["Hi"], r"^messages\[0\]='Hi': must be a mapping, such as "),
        ([{"role": "user"}, 7], r"^messages\[1\]=7: must be a mapping"),
        ([[{"role": "user"}]], r"^messages\[0\]=\[{'role': 'user'}\]: must be a mapping"),
        ([Model], r"^messages\[0\]=<class .*: must be a mapping"),
        ([SimpleNamespace(model_dump=list)], r"^messages\[0\]=.*: must be a mapping"),
        ([{"role": "user", 7: "x"}], r"^messages\[0\] has the key 7: keys must be texts"),
        ([{"a": [{"b": {None: 1}}]}], r"^messages\[0\]\.a\[0\]\.b has the key None: keys must be texts"),
        ([{"content": [{"image": b"x"}]}], r"^messages\[0\]\.content\[0\]\.image=b'x': .*not bytes$"),
        ([{"content": {1}}], r"^messages\[0\]\.content=\{1\}: .*not set$"),
        ([{"content": np.zeros(2)}], r"^messages\[0\]\.content=array.*not ndarray$"),
        ([{"content": 1 << 9000}], r"^messages\[0\]\.content: an integer of 9,001 bits; 8,192 are allowed$"),
        ([{"content": nested(5000)}], r"^messages\[0\]\.content\[0\].*\.\.\.: .*nested more than 100 deep$"),
        ([{"c\n" * 999: object}], r"^messages\[0\]\.c\\nc.*not type$"),
    ],
)
def test_what_messages_may_not_be(messages: Any, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem) as caught:
        chat("", messages)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"tools": [len]}, r"^tools\[0\]=<built-in function len>: must be a mapping, each a JSON schema"),
        ({"tools": {"name": "f"}}, r"^tools={'name': 'f'}: must be a list of mappings"),
        ({"documents": ["text"]}, r"^documents\[0\]='text': must be a mapping"),
        ({"add_generation_prompt": {1}}, r"^add_generation_prompt=\{1\}: a chat template takes"),
        ({"enable_thinking": {1, 2}}, r"^enable_thinking={1, 2}: a chat template takes"),
    ],
)
def test_what_variables_may_not_be(given: Any, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        tokenizer("tiny_wordpiece").apply_chat_template([{"role": "user"}], **given)


def test_no_tools_are_not_an_empty_list() -> None:
    given = {"tools": None, "documents": []}
    assert template_variables(given) == given


def test_too_long_a_conversation() -> None:
    with pytest.raises(InvalidRequest, match=r"^the conversation has 41,0.* bytes as JSON; 40,000,000 are allowed"):
        chat("", [{"role": "user", "content": "x" * 41_000_000}])


def test_ten_million_characters_outside_ascii_fit() -> None:
    content = "\U0001f600" * 9_999_000
    limits = RenderLimits(seconds=60)  # a busy machine takes longer than the usual limit
    source = "{% for m in messages %}{{ m.content | trim }}{% endfor %}"
    assert chat(source, [{"content": content}], limits=limits) == content


def test_the_mark_is_no_character_of_the_messages() -> None:
    messages = [{"role": "user", "content": "\ufdd0<|end|>"}]
    guarded, mark = guard(messages, ["<|end|>"])
    assert mark == "\ufdd1"
    assert guarded == [{"role": "user", "content": "\ufdd0<\ufdd1|end|>"}]
    with pytest.raises(InvalidRequest, match="noncharacters"):
        guard([{"content": "".join(map(chr, range(0xFDD0, 0xFDF0)))}], [])


class Broken:
    """A pydantic model whose fields cannot be read."""

    def model_dump(self) -> dict[str, Any]:
        raise AttributeError("no field\nof that name")


def test_fields_that_cannot_be_read() -> None:
    with pytest.raises(InvalidRequest, match=r"^messages\[0\]: the fields of this Broken .*AttributeError: no field$"):
        conversation([Broken()])


def test_long_doubles() -> None:
    assert type(template_variables({"x": np.longdouble(1.5)})["x"]) is float
    assert template_variables({"x": np.longdouble(1.5)}) == {"x": 1.5}
    with pytest.raises(InvalidRequest, match="a chat template takes texts"):
        template_variables({"x": np.clongdouble(1)})
