"""``StringArray`` is a list that decodes its strings on access."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.strings import string_array

STRINGS = st.lists(
    st.one_of(
        st.text(max_size=4),
        st.text("aé▁𝄞\0", max_size=8),
        st.sampled_from(["", "\0", "\x01" + "\0" * 7, "ÿ", "a" * 255, "a" * 256, "é" * 40_000]),
    ),
    max_size=30,
)


@given(STRINGS)
def test_it_is_the_list(strings: list[str]) -> None:
    found = string_array(strings)
    assert len(found) == len(strings)
    assert [found[i] for i in range(len(strings))] == strings
    assert [string_array(strings * 9)[i] for i in range(-9 * len(strings), 0)] == strings * 9
    assert [*found] == found.tolist() == string_array(strings).tolist() == strings
    assert found == strings == found
    assert found == string_array(strings)
    assert found != [*strings, "x"]
    assert found[1:-1] == strings[1:-1]
    for at in (len(strings), -len(strings) - 1):
        with pytest.raises(IndexError):
            string_array(strings)[at]


@given(STRINGS, st.data())
def test_changes(strings: list[str], data: st.DataObject) -> None:
    places = st.integers(0, max(len(strings) - 1, 0))
    changes = data.draw(st.dictionaries(places, st.text(max_size=3)) if strings else st.just({}))
    before = string_array(strings)
    found = before.with_changes(changes)
    wanted = [changes.get(i, one) for i, one in enumerate(strings)]
    assert [found[i] for i in range(len(strings))] == wanted == found.tolist()
    assert before == strings


def test_many_strings_made_alone_make_all() -> None:
    found = string_array([str(i) for i in range(1000)])
    alone = [found[700] for _ in range(125)]
    assert alone == ["700"] * 125
    assert len({id(one) for one in alone}) == 125
    assert found[800] == "800"
    assert found[700] is found[700]


def test_a_list_that_is_changed_is_another_one() -> None:
    found = string_array(["a", "b"])
    found.tolist()[0] = "c"
    assert found == ["a", "b"]
    assert repr(found) == "StringArray(2 strings)"
    with pytest.raises(TypeError):
        hash(found)
