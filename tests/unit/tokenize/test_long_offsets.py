"""Offsets of long texts, computed with arrays, equal offsets of short texts, computed with patterns."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pellucid.tokenize.encoding import Token, TokenTable
from pellucid.tokenize.stages import aligned, normalize
from pellucid.tokenize.stages.aligned import AlignedText, CharacterMap
from pellucid.tokenize.stages.normalize import Bert, Lowercase, Nmt, Normalize, Normalizer, Rewrite, matches
from pellucid.tokenize.unicode import bracket

# Letters with marks, marks of several classes and in the wrong order, jamo, ligatures, capitals that become two
# characters, ideographs, characters that are dropped, and a character newer than Unicode 9.
ODD = "ae é ñİﬁ½が각\u1112\u1161\u11ab\u0301\u0323\u0344\u0f73\u0f75漢字\u200b\x07\t\U0001f9a9\u0b56"
TEXTS = st.text(st.sampled_from(ODD) | st.characters(exclude_categories=["Cs"]), max_size=60)
STAGES = [*(Normalize(form) for form in ("NFC", "NFD", "NFKC", "NFKD")), Bert(), Lowercase(), Nmt()]  # type: ignore[arg-type]


def cut(text: str) -> AlignedText:
    """A text that is a part of another text. Characters are missing, so that its offsets are not a range."""
    places = [3 * at + 7 for at in range(len(text))]
    return AlignedText(text, places, [place + 2 for place in places], 5)


def plain(text: AlignedText) -> tuple[str, list[int], list[int], int]:
    return text.text, list(text.starts), list(text.ends), text.origin


def by_runs(stage: Normalize, text: AlignedText) -> AlignedText:
    """Reference: each run of characters of Unicode 9 is normalized as a whole."""

    def change(run: str) -> list[tuple[str, int]]:
        if unicodedata.is_normalized(stage.form, run):
            return [(letter, at) for at, letter in enumerate(run)]
        return rewrite.change(run)

    (rewrite,) = stage.steps()
    return Rewrite(matches(f"[{bracket('text.normalized')}]+"), change).aligned(text)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: repr(stage)[:30])
@given(text=TEXTS)
@example(text="\u0344\u0323e\u0301\u0323")
@example(text="\u0323\u0344a")
def test_arrays_and_patterns_agree(stage: Normalizer, text: str) -> None:
    found = []
    for short in (-1, 1 << 30):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(aligned, "SHORT", short)
            patch.setattr(normalize, "SHORT", short)
            found.append(plain(stage.aligned(cut(text))))
    assert found[0] == found[1]
    assert found[0][0] == stage(text)


@pytest.mark.parametrize("stage", STAGES[:4], ids=lambda stage: stage.form)
@given(text=TEXTS)
def test_parts_of_a_text_are_normalized_as_the_whole(stage: Normalize, text: str) -> None:
    assert plain(stage.aligned(cut(text))) == plain(by_runs(stage, cut(text)))


@given(
    st.text("abcd", max_size=20), *[st.dictionaries(st.sampled_from(range(97, 101)), st.text("abcdxy", max_size=3))] * 2
)
def test_two_maps_are_one(text: str, first: dict[int, str], second: dict[int, str]) -> None:
    one, other = CharacterMap(first), CharacterMap(second)
    assert plain(one.then(other).aligned(cut(text))) == plain(other.aligned(one.aligned(cut(text))))
    assert one.then(other)(text) == other(one(text))


def tokens() -> Iterator[Token]:
    for n in range(7):
        yield Token(n, "abcdefg"[n], 2 * n, 2 * n + 1, n % 2, None if n == 3 else 0, n == 3, n == 6)


def test_a_table_is_a_list_of_its_tokens() -> None:
    made = list(tokens())
    table = TokenTable.joined([made[:2], TokenTable.joined([made[2:]]), []])
    assert table == made
    assert made == list(table)
    assert (len(table), table[0], table[-1], table[2:5], table[::-1]) == (7, made[0], made[-1], made[2:5], made[::-1])
    assert table[:0] == []
    assert hash(table) == hash(tuple(made))
    assert repr(table) == repr(made)
    assert table.changed(type_id=[5] * 7) == [one._replace(type_id=5) for one in made]
    assert table.column("text") == list("abcdefg")
    with pytest.raises(IndexError):
        table[7]
