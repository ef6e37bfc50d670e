"""Names that users of other libraries type in Python: they work, or an error says what to type."""

from __future__ import annotations

from typing import Any

import pytest

import pellucid
from pellucid.errors import InvalidRequest
from pellucid.load_options import OTHER_NAMES, LoadOptions
from pellucid.tokenize.chat.conversation import conversation


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_an_option_of_another_library_says_its_name_here(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        pellucid.load("nowhere", **{name: 1})
    assert str(caught.value) == f"unknown option '{name}': {OTHER_NAMES[name]}"
    assert name not in LoadOptions.__struct_fields__


def test_a_typing_error_suggests_an_option() -> None:
    with pytest.raises(InvalidRequest, match="did you mean context"):
        pellucid.load("nowhere", contxt=5)


def test_names_of_other_packages_say_what_to_type() -> None:
    for name in ("Options", "SamplingParams", "SentenceTransformer", "Llama"):
        with pytest.raises(AttributeError, match=r"pellucid\.load|llm\.generate"):
            getattr(pellucid, name)
    with pytest.raises(AttributeError, match=r"has no attribute 'nothing'$"):
        _ = pellucid.nothing  # type: ignore[attr-defined]


def test_models_are_pulled_and_listed() -> None:
    from pellucid.weights import store

    assert pellucid.pull is store.pull
    assert pellucid.list is store.installed
    assert dir(pellucid) == sorted(dir(pellucid))


def test_content_parts_are_joined() -> None:
    parts: list[Any] = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    assert conversation([{"role": "user", "content": parts}]) == [{"role": "user", "content": "a b"}]
    for other in ([{"type": "text", "text": 5}], [{"type": "thing"}], []):
        assert conversation([{"role": "user", "content": other}]) == [{"role": "user", "content": other}]
    with pytest.raises(InvalidRequest, match="only text is supported, not image"):
        conversation([{"role": "user", "content": [*parts, {"type": "image_url", "image_url": {"url": "x"}}]}])
