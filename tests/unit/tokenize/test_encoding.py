"""Offsets, pairs, windows and padding. Windows are compared with ``tests/oracles/windows_oracle.py``."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_cases import GOLDENS, TINY, tokenizer

from pellucid.errors import InvalidRequest
from pellucid.tokenize.encoding import Padding, Truncation
from pellucid.tokenize.stages.postprocess import A, Template

WINDOWS = json.loads((GOLDENS / "windows.json").read_text())


@pytest.mark.parametrize(
    "case", WINDOWS["cut"], ids=lambda case: "-".join(str(v) for v in [*case.values()][:-1])
)
def test_windows_equal_the_oracles(case: dict[str, Any]) -> None:
    ours, text = tokenizer("tiny_wordpiece"), WINDOWS["text"]
    given_ = (text, WINDOWS["second"]) if case["pair"] else text
    cut = Truncation(case["max_length"], case["stride"], case["strategy"], case["direction"])
    if case["windows"] is None:
        with pytest.raises(InvalidRequest, match="truncation"):
            ours.encode_with_offsets(given_, truncation=cut)
        return
    first = ours.encode_with_offsets(given_, truncation=cut)
    found = [[one.ids, [*map(list, one.offsets)], one.segments] for one in (first, *first.overflowing)]
    assert found == case["windows"]


@pytest.mark.parametrize("case", WINDOWS["filled"], ids=str)
def test_padding_equals_the_oracles(case: dict[str, Any]) -> None:
    ours = tokenizer("tiny_wordpiece")
    fill = Padding(0, "[PAD]", case["length"], case["pad_to_multiple_of"], side=case["direction"])
    found = ours.encode_batch_with_offsets([WINDOWS["text"], WINDOWS["second"]], padding=fill)
    assert [[one.ids, one.attention_mask] for one in found] == case["padded"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_length": -1}, "max_length is -1"),
        ({"max_length": 1}, "2 special tokens are put around"),
        ({"max_length": 8, "strategy": "both"}, "'both' is not known; known are longest_first"),
        ({"max_length": 8, "side": "middle"}, "'middle' is not known"),
        ({"max_length": 4, "stride": 2}, "stride is 2, but windows have 2 ids"),
    ],
)
def test_what_leaves_no_room_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        tokenizer("tiny_wordpiece").encode_with_offsets("a long enough text", truncation=Truncation(**wrong))


@pytest.mark.parametrize("name", TINY)
@given(text=st.text(max_size=60), parse_special=st.booleans())
def test_offsets_come_with_the_ids_of_encode(name: str, text: str, parse_special: bool) -> None:
    ours = tokenizer(name)
    found = ours.encode_with_offsets(text, parse_special=parse_special)
    assert found.ids == ours.encode(text, parse_special=parse_special)
    assert all(0 <= start <= end <= len(text) for start, end in found.offsets)
    explained = ours.explain(text, parse_special=parse_special)
    assert explained.ids == found.ids
    json.dumps(explained.as_dict())


@pytest.mark.parametrize("name", TINY)
def test_a_batch_is_its_texts(name: str) -> None:
    ours, texts = tokenizer(name), ["one", "", "a longer text, with more in it", "日本語"]
    assert ours.encode_batch(texts) == [ours.encode(text) for text in texts]
    assert [ids.tolist() for ids in ours.encode_arrays(texts)] == ours.encode_batch(texts)
    assert [one.ids for one in ours.encode_batch_with_offsets(texts)] == ours.encode_batch(texts)


@pytest.mark.parametrize("single", [(), ((7, 0),), ((A, 0),), ((7, 0), (A, 0)), ((A, 0), (7, 0), (A, 0))])
def test_around_arrays_is_what_is_around_lists(single: tuple[tuple[int, int], ...]) -> None:
    template = Template(single)
    for ids in ([], [1, 2, 3]):
        found = template.array(np.array(ids, np.int32))
        assert (found.tolist(), found.dtype) == (template.ids(ids), np.int32)


def test_what_is_put_around_is_no_part_of_the_text() -> None:
    found = tokenizer("tiny_wordpiece").encode_with_offsets(("the text", "of a pair"))
    assert [token.sequence for token in found if token.special] == [None, None, None]
    assert {token.sequence for token in found if not token.special} == {0, 1}
    assert found[0].special
    assert len(found) == len(found.ids)
