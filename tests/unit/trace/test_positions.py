"""Positions of selections: what users write, against sets of numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.errors import InvalidRequest
from pellucid.trace.positions import ENDLESS, Positions, TokenTexts, parse

PIECES = ["the", " cat", " sat", " on", " the", " ca", "t", "s", " cat"]
PROMPT = TokenTexts(range(len(PIECES)), PIECES.__getitem__)


def positions(text: str) -> Positions:
    return parse("x", "tokens", text).resolve(PROMPT)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", [5]),
        ("2:4", [2, 3]),
        (":3", [0, 1, 2]),
        ("10:", [10, 11]),
        ("::4", [0, 4, 8]),
        ("1:9:3", [1, 4, 7]),
        ("0,4:6,8", [0, 4, 5, 8]),
        ("-1", [8]),
        ("-3:", [6, 7, 8, 9, 10, 11]),
        (":-7", [0, 1]),
        ("-4:-2", [5, 6]),
        ("1:-6", [1, 2]),
        ("0,-1", [0, 8]),
        ("prompt", list(range(9))),
        ("generated", [9, 10, 11]),
        ("0,generated", [0, 9, 10, 11]),
        ('" cat"', [1, 5, 6, 8]),
        ("' cat'", [1, 5, 6, 8]),
        ('"cats"', [5, 6, 7]),
        ('"the"', [0, 4]),
        ('" sat on"', [2, 3]),
        ('-9," sat"', [0, 2]),
        ('"\\u0063at"', [1, 5, 6, 8]),
    ],
)
def test_what_users_write(text: str, expected: list[int]) -> None:
    found = positions(text)
    assert found.within(0, 12).tolist() == expected
    assert [at in found for at in range(12)] == [at in expected for at in range(12)]
    assert [found.rows_before(at) for at in range(12)] == [
        sum(one < at for one in expected) for at in range(12)
    ]
    assert [at for run in found.runs(0, 12) for at in run] == expected
    assert found.start == expected[0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must be a position such as 5 or -1"),
        ("x", "must be a position"),
        ("5:5", "the range is empty"),
        ("9:3", "the range is empty"),
        ("::0", "the range is empty"),
        ("3,1", "positions must ascend"),
        ("1,1", "positions must ascend"),
        ("1:5,3", "positions must ascend"),
        ("-1,8", "positions must ascend"),
        ("-10", "the prompt has 9 tokens"),
        ('" dog"', "this text does not occur in the prompt"),
        ('""', "empty or not closed"),
        ('" cat', "empty or not closed"),
        (",".join(map(str, range(65))), "65 ranges; the limit is 64"),
        ("99999999999", "must be a position"),
    ],
)
def test_what_is_refused(text: str, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem) as raised:
        positions(text)
    assert "\n" not in str(raised.value)


@given(
    starts=st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=5
    ),
    start=st.integers(0, 60),
    count=st.integers(0, 60),
)
def test_parts_against_a_list(starts: list[tuple[int, int, int]], start: int, count: int) -> None:
    at, parts = 0, list[range]()
    for gap, size, step in starts:
        parts.append(range(at + gap, at + gap + size * step, step))
        at = parts[-1][-1] + 1
    found, listed = Positions(tuple(parts)), [one for part in parts for one in part]
    inside = [one for one in listed if start <= one < start + count]
    assert found.within(start, start + count).tolist() == inside
    runs = list(found.runs(start, start + count))
    assert [one for run in runs for one in run] == inside
    assert all(run.step == 1 or len(run) == 1 for run in runs)
    assert len(found) == len(listed)
    assert found.stop == listed[-1] + 1
    assert found.rows_before(start) == sum(one < start for one in listed)
    assert found.first(count).within(0, ENDLESS).tolist() == listed[:count] if count else True


def test_endless_positions_are_not_listed() -> None:
    everything = parse("x", "tokens", ":")
    assert len(everything) == ENDLESS
    assert everything.within(5, 8).dtype == np.int64
    assert everything.rows_before(7) == 7
