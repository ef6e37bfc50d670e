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
        ("-99:2", [0, 1]),
        ("8:99", [8, 9, 10, 11]),
        ("8,3", [8, 3]),
        ("1::3,2", [1, 4, 7, 10, 2]),
        ("10:,0:2", [10, 11, 0, 1]),
        ("1::2,::2", [1, 3, 5, 7, 9, 11, 0, 2, 4, 6, 8, 10]),
        ('-1," sat"', [8, 2]),
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
    assert found.listed(12).tolist() == expected
    assert [found.row_of(at, 12) for at in expected] == list(range(len(expected)))
    ascending = sorted(expected)
    assert found.within(0, 12).tolist() == ascending
    assert [at in found for at in range(12)] == [at in expected for at in range(12)]
    assert [found.rows_before(at) for at in range(12)] == [sum(one < at for one in expected) for at in range(12)]
    assert [at for run in found.runs(0, 12) for at in run] == ascending
    assert [found.next(at).tolist() for at in range(12)] == [
        [one for one in ascending if one >= at][:1] or found.next(at).tolist() for at in range(12)
    ]
    assert found.start == ascending[0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must be a position such as 5 or -1"),
        ("x", "must be a position"),
        ("5:5", "the range is empty"),
        ("9:3", "the range is empty"),
        ("::0", "the range is empty"),
        ("1,1", "point='x': tokens='1,1' has 1 twice: name each number once"),
        ("1:5,3", "tokens='1:5,3' has 3 twice"),
        ("3,::3", "has 3 twice"),
        ("1::6,1000000003::4,2000000001::9", "has 1,000,000,003 twice"),
        ("-1,8", "tokens='-1,8' has 8 twice: name each number once"),
        ('" cat",6', "has 6 twice"),
        ("-10", "the prompt has 9 tokens"),
        ("-12:-9", "the prompt has 9 tokens"),
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
    starts=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=5),
    start=st.integers(0, 60),
    count=st.integers(0, 60),
)
def test_parts_against_a_list(starts: list[tuple[int, int, int]], start: int, count: int) -> None:
    given = [range(first, first + size * step, step) for first, size, step in starts]
    text = ",".join(f"{part.start}:{part.stop}:{part.step}" for part in given)
    written = [one for part in given for one in part]
    if len(set(written)) < len(written):
        with pytest.raises(InvalidRequest, match=r"has \d+ twice"):
            parse("x", "tokens", text)
        return
    found, listed = parse("x", "tokens", text), sorted(written)
    inside = [one for one in listed if start <= one < start + count]
    assert found.within(start, start + count).tolist() == inside
    assert found.listed(count).tolist() == [one for one in written if one < count]
    runs = list(found.runs(start, start + count))
    assert [one for run in runs for one in run] == inside
    rows = [[found.row_of(one) for one in run] for run in runs]
    assert all(own == list(range(own[0], own[0] + len(own))) for own in rows)
    assert all(run.step == 1 or len(run) == 1 for run in runs)
    assert len(found) == len(listed)
    assert found.stop == listed[-1] + 1
    assert found.rows_before(start) == sum(one < start for one in listed)
    if count:
        lowest = listed[:count]
        assert found.first(count).listed(ENDLESS).tolist() == [one for one in written if one in lowest]


def test_endless_positions_are_not_listed() -> None:
    everything = parse("x", "tokens", ":")
    assert len(everything) == ENDLESS
    assert everything.within(5, 8).dtype == np.int64
    assert everything.rows_before(7) == 7
