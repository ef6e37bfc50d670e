"""Stop strings: whatever the pieces, the text ends before the first complete one, and nothing waits for nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.sample.stop import Stopper

LETTERS = "aab\n 日"  # few, so that stop strings begin, break off and overlap
stop_strings = st.lists(st.text(LETTERS, min_size=1, max_size=5), max_size=4).map(tuple)
pieces_of_text = st.lists(st.text(LETTERS, max_size=6), max_size=12)


def cut(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """The definition: at the first character that completes a stop string, without the longest that it completes."""
    for end in range(1, len(text) + 1):
        complete = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(complete)], True
    return text, False


@given(stop_strings, pieces_of_text)
def test_the_text_ends_before_the_first_complete_stop_string(
    stops: tuple[str, ...], pieces: list[str]
) -> None:
    stopper = Stopper(stops)
    out = "".join(stopper.push(piece) for piece in pieces)
    stopped = stopper.stopped
    assert (out + stopper.flush(), stopped) == cut("".join(pieces), stops)
    assert stopper.push("more") == "" or not stopped


@given(stop_strings, pieces_of_text)
def test_only_what_may_begin_a_stop_string_is_held_back(stops: tuple[str, ...], pieces: list[str]) -> None:
    stopper, text, out = Stopper(stops), "", ""
    for piece in pieces:
        text, out = text + piece, out + stopper.push(piece)
        if stopper.stopped:
            return
        begun = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
        assert len(text) - len(out) == max(begun, default=0)


@given(pieces_of_text)
def test_without_stop_strings_nothing_waits(pieces: list[str]) -> None:
    stopper = Stopper()
    assert [stopper.push(piece) for piece in pieces] == pieces
    assert stopper.flush() == ""


@pytest.mark.parametrize(
    ("stops", "pieces", "wanted"),
    [
        (("\nUser:",), ["Hi", "\n", "Us", "er", ": what"], "Hi"),
        (("\nUser:",), ["Hi\nUse", "ful"], "Hi\nUseful"),
        (("aab",), ["aa", "aab"], "aa"),
        (("abcd", "c"), ["abcd"], "ab"),
        (("abcd", "c"), ["a", "b", "c", "d"], "ab"),
        (("b", "ab"), ["xa", "b"], "x"),
    ],
)
def test_examples(stops: tuple[str, ...], pieces: list[str], wanted: str) -> None:
    stopper = Stopper(stops)
    assert "".join(map(stopper.push, pieces)) + stopper.flush() == wanted
