"""Offsets, pairs, windows and padding. Windows are compared with ``tests/oracles/windows_oracle.py``."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_cases import GOLDENS, TINY, tokenizer

from pellucid.errors import InvalidRequest
from pellucid.tokenize.encoding import Padding, Truncation
from pellucid.tokenize.stages.postprocess import A, B, Template

WINDOWS = json.loads((GOLDENS / "windows.json").read_text())


@pytest.mark.parametrize("case", WINDOWS["cut"], ids=lambda case: "-".join(str(v) for v in [*case.values()][:-1]))
def test_windows_equal_the_oracles(case: dict[str, Any]) -> None:
    ours, text = tokenizer("tiny_wordpiece"), WINDOWS["text"]
    cut = Truncation(case["max_length"], case["stride"], case["strategy"], case["direction"])
    encode = partial(ours.encode_pair, text, WINDOWS["second"])
    if not case["pair"]:
        encode = partial(ours.encode_with_offsets, text)
    if case["windows"] is None:
        with pytest.raises(InvalidRequest, match="truncation"):
            encode(truncation=cut)
        return
    found = [[one.ids, [*map(list, one.offsets)], one.type_ids] for one in encode(truncation=cut).windows]
    assert found == case["windows"]
    if not case["pair"]:
        assert ours.encode(text, truncation=cut) == found[0][0]
        assert ours.encode_batch([text], truncation=cut) == [found[0][0]]
        assert ours.encode_arrays([text], truncation=cut)[0].tolist() == found[0][0]


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


@pytest.mark.parametrize("single", [(), ((7, 2),), ((A, 0),), ((7, 2), (A, 1)), ((A, 1), (7, 2), (A, 1))])
def test_arrays_and_types_have_the_special_tokens_of_lists(single: tuple[tuple[int, int], ...]) -> None:
    template = Template(single)
    for ids in ([], [1, 2, 3]):
        found, around = template.array(np.array(ids, np.int32)), template.ids(ids)
        assert (found.tolist(), found.dtype) == (around, np.int32)
        assert template.type_ids(len(around)) == [dict(single)[7 if one == 7 else A] for one in around]


def test_special_tokens_belong_to_neither_text() -> None:
    found = tokenizer("tiny_wordpiece").encode_pair("the text", "of a pair")
    assert [token.sequence for token in found if token.special] == [None, None, None]
    assert found[0].special
    assert len(found) == len(found.ids) == len(found.sequence_ids)
    assert all(text in (None, type_id) for text, type_id in zip(found.sequence_ids, found.type_ids))


TEXTS = st.text(st.sampled_from("abcdef the, é語\n"), max_size=40)


@pytest.mark.parametrize("name", TINY)
@given(first=TEXTS, second=TEXTS)
def test_a_pair_is_its_two_texts(name: str, first: str, second: str) -> None:
    """The template puts the tokens of the two texts, unchanged, between special tokens."""
    ours = tokenizer(name)
    found = ours.encode_pair(first, second)
    parts = [ours.encode_with_offsets(text, add_special=False) for text in (first, second)]
    ids = [parts[A - item].ids if item in (A, B) else [item] for item, _ in ours.post_processor.pair]
    assert found.ids == [one for part in ids for one in part]
    for place, (part, text) in enumerate(zip(parts, (first, second))):
        own = [token for token in found if token.sequence == place]
        assert [token[:4] for token in own] == [token[:4] for token in part]
        assert all(0 <= token.start <= token.end <= len(text) for token in own)
        assert {token.type_id for token in own} <= {
            type_id for item, type_id in ours.post_processor.pair if item == A - place
        }


@pytest.mark.parametrize("name", TINY)
@given(
    first=TEXTS,
    second=TEXTS,
    longest=st.integers(5, 30),
    stride=st.integers(0, 2),
    strategy=st.sampled_from(["longest_first", "only_first", "only_second"]),
    side=st.sampled_from(["left", "right"]),
)
def test_a_long_pair_gets_the_length_that_is_asked_for(
    name: str, first: str, second: str, longest: int, stride: int, strategy: Any, side: Any
) -> None:
    ours = tokenizer(name)
    whole = ours.encode_pair(first, second)
    try:
        found = ours.encode_pair(first, second, truncation=Truncation(longest, stride, strategy, side))
    except InvalidRequest:
        assert len(whole) > longest
        return
    assert len(found) == min(len(whole), longest)
    added = [token for token in whole if token.special]
    for window in found.windows:
        assert len(window) <= longest
        assert [token for token in window if token.special] == added
    for place in (0, 1):
        kept = {token[1:4] for window in found.windows for token in window if token.sequence == place}
        assert kept == {token[1:4] for token in whole if token.sequence == place}


@pytest.mark.parametrize("name", TINY)
@given(texts=st.lists(st.tuples(TEXTS, TEXTS), max_size=3), longest=st.none() | st.integers(3, 20))
def test_pairs_without_offsets_are_the_pairs_with_offsets(
    name: str, texts: list[tuple[str, str]], longest: int | None
) -> None:
    ours = tokenizer(name)
    cut = None if longest is None else Truncation(longest)
    found = ours.encode_pairs([*texts, *texts], truncation=cut)
    wanted = [ours.encode_pair(*pair, truncation=cut) for pair in texts]
    assert found == 2 * [(pair.ids, pair.type_ids) for pair in wanted]


def test_what_is_no_pair_is_refused() -> None:
    ours = tokenizer("tiny_wordpiece")
    for wrong in ("ab", ("a",), ("a", "b", "c"), None):
        with pytest.raises(InvalidRequest, match="must be a text, or a pair of texts"):
            ours.encode_pairs([wrong])  # type: ignore[list-item]
    with pytest.raises(InvalidRequest, match=r"second=3"):
        ours.encode_pair("a", 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TINY)
@given(text=TEXTS, longest=st.integers(3, 20))
def test_a_long_text_keeps_its_special_tokens(name: str, text: str, longest: int) -> None:
    ours = tokenizer(name)
    whole, found = ours.encode(text), ours.encode(text, truncation=Truncation(longest))
    assert len(found) == min(len(whole), longest)
    inner = ours.encode(text, add_special=False)
    kept = longest - ours.post_processor.added(False)
    assert found == ours.post_processor.ids(inner[:kept] if len(whole) > longest else inner)
    assert ours.type_ids(len(whole)) == ours.encode_with_offsets(text).type_ids


def test_windows_of_a_passage_repeat_the_question() -> None:
    """Windows as question answering in transformers makes them: ``only_second`` with a stride."""
    ours, question, passage = tokenizer("tiny_wordpiece"), "which text?", "a passage of the text " * 20
    found = ours.encode_pair(question, passage, truncation=Truncation(24, 8, "only_second"))
    asked = ours.encode(question, add_special=False)
    inner = ours.encode(passage, add_special=False)
    size, at = 24 - len(asked) - 3, 0
    assert len(found.windows) > 2
    for window in found.windows:
        part = [token.id for token in window if token.sequence == 1]
        assert [token.id for token in window if token.sequence == 0] == asked
        assert part == inner[at : at + size]
        at += size - 8
    assert at + 8 >= len(inner)
