"""Ids that are parts of one character are grouped, for any vocabulary; other ids stay separate."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_cases import MODELS, TINY, tokenizer

from pellucid.tokenize import Tokenizer
from pellucid.tokenize.stages.decode import groups

ALL = [*TINY, *MODELS]


def parts_of(ours: Tokenizer, ids: Sequence[int]) -> list[bytes]:
    """Bytes of each id at its position in the text."""
    parts, begun = list[bytes](), False
    for token in ids:
        parts.append(ours.decoder.piece(token, not begun))
        begun = begun or ours.decoder.begins_text(parts[-1])
    return parts


def cuts(parts: Sequence[bytes]) -> list[int]:
    """Indices of ids where a cut splits no character and no incomplete character, by Python's decoder."""
    data = b"".join(parts)
    whole = data.decode("utf-8", "replace")
    ends = [0, *accumulate(map(len, parts))]
    decoded = [(data[:end].decode("utf-8", "replace"), data[end:].decode("utf-8", "replace")) for end in ends[:-1]]
    return [at for at, (before, after) in enumerate(decoded) if before + after == whole]


@given(st.data())
@pytest.mark.parametrize("name", ALL)
def test_groups_are_the_characters(name: str, data: st.DataObject) -> None:
    ours = tokenizer(name)
    if data.draw(st.booleans()):
        ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=20))
    else:
        ids = ours.encode(data.draw(st.text(st.sampled_from("a 中国🦙ꙮ é\u0301\u200d\n"), max_size=20)))
    found, parts = ours.characters(ids), parts_of(ours, ids)
    assert [one.first for one in found] == [0, *(one.stop for one in found)][:-1]
    assert (found[-1].stop if found else 0) == len(ids)
    # An id without bytes stays with the character that is open before it.
    allowed = [at for at in cuts(parts) if parts[at] or at == 0 or at in {one.first for one in found}]
    assert [one.first for one in found if parts[one.first] or one.first in allowed] == allowed
    whole = b"".join(parts)
    text = "".join(one.text for one in found)
    if whole.decode("utf-8", "ignore").encode() == whole:
        assert text == whole.decode()
        # A decoder may strip the space that begins a text.
        assert ours.decode(ids, skip_special=False) in (text, text.removeprefix(" "))


@given(st.lists(st.integers(0, 255), max_size=12), st.integers(0, 12))
def test_bytes_one_by_one(values: list[int], cut: int) -> None:
    ours = tokenizer("tiny_byte_fallback")
    ids = [ours.id_of(f"<0x{value:02X}>") for value in values]
    parts = [bytes([value]) for value in values]
    found = ours.characters(ids)
    assert [one.first for one in found] == cuts(parts)
    expected = "".join(
        char if not "\udc80" <= char <= "\udcff" else f"<0x{ord(char) - 0xDC00:02X}>"
        for char in bytes(values).decode("utf-8", "surrogateescape")
    )
    assert "".join(one.text for one in found) == expected
    grouper = ours.grouper()
    before, after = groups(grouper, ids[:cut]), groups(grouper, ids[cut:])
    if before and after and after[0].first == before[-1].first:
        before.pop()
    assert [*before, *after] == found


def test_a_character_of_several_ids_is_one_text() -> None:
    ours = tokenizer("tiny_byte_fallback")
    text = "a🦙b"
    assert [one.text for one in ours.characters(ours.encode(text, add_special=False))][-2:] == ["🦙", "b"]
    first, second = (ours.id_of(f"<0x{byte:02X}>") for byte in "é".encode())
    assert ours.piece(first) == "<0xC3>"
    grouper = ours.grouper()
    assert grouper.push(first).text == "<0xC3>"
    assert grouper.then(second).text == "é"
    assert grouper.then(first).text == "<0xC3>"
    assert grouper.push(second) == (0, 2, "é")
