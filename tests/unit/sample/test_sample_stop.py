"""Stop strings: the text ends before the first complete stop string, for any split into tokens, without delay."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.sample.options import StopCriteria, StopStrings

LETTERS = "aab\n 日"  # few, so that stop strings begin, break off and overlap
stop_strings = st.lists(st.text(LETTERS, min_size=1, max_size=5), max_size=4).map(tuple)
pieces_of_text = st.lists(st.text(LETTERS, max_size=6), max_size=12)


def cut(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """Reference: the text ends where a stop string first completes, and excludes the longest stop string there."""
    for end in range(1, len(text) + 1):
        complete = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(complete)], True
    return text, False


@given(stop_strings, pieces_of_text)
def test_the_text_ends_before_the_first_complete_stop_string(stops: tuple[str, ...], pieces: list[str]) -> None:
    stopper = StopStrings(stops)
    out = "".join(stopper.push(piece) for piece in pieces)
    stopped = stopper.stopped
    assert (out + stopper.flush(), stopped) == cut("".join(pieces), stops)
    assert stopper.push("more") == "" or not stopped


@given(stop_strings, pieces_of_text)
def test_only_what_may_begin_a_stop_string_is_held_back(stops: tuple[str, ...], pieces: list[str]) -> None:
    stopper, text, out = StopStrings(stops), "", ""
    for piece in pieces:
        text, out = text + piece, out + stopper.push(piece)
        if stopper.stopped:
            return
        begun = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
        assert len(text) - len(out) == max(begun, default=0)


@given(pieces_of_text)
def test_without_stop_strings_nothing_waits(pieces: list[str]) -> None:
    stopper = StopStrings()
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
    stopper = StopStrings(stops)
    assert "".join(map(stopper.push, pieces)) + stopper.flush() == wanted


def endings(texts: list[str], last: int, **options: Any) -> tuple[str, str | None]:
    """The text that the criteria release, and the reason for its end."""
    ending, out = StopCriteria(**options), ""
    ending.start()
    for at, text in enumerate(texts):
        certain, reason = ending.push(text, last=at + 1 == last)
        out += certain
        if reason:
            return out, reason
    return out, None


def test_each_way_to_end() -> None:
    texts = ["ab", "cd", "ef", "gh"]
    assert endings(texts, 99) == ("abcdefgh", None)
    assert endings(texts, 2) == ("abcd", "length")
    assert endings(texts, 99, stops=("de",)) == ("abc", "stop")
    assert endings(texts, 3, stops=("de",)) == ("abc", "stop")
    assert endings(texts, 99, max_time=1e-9) == ("ab", "time")
    assert endings(texts, 99, max_time=1000.0) == ("abcdefgh", None)


def test_what_was_held_back_comes_out_at_every_end_but_a_stop_string() -> None:
    assert endings(["ab", "cX"], 2, stops=("XYZ",)) == ("abcX", "length")
    assert endings(["aX"], 9, stops=("XYZ",), max_time=1e-9) == ("aX", "time")
    ending = StopCriteria(("XYZ",))
    assert (ending.push("aX", last=False), ending.strings.held, ending.flush("Y")) == (("a", None), "X", "XY")
