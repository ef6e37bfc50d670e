"""The kernel "text.rewrite" makes of texts what ``tokenize/normalize.py`` and ``tokenize/charsmap.py`` do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.tokenize.charmap import character_maps
from pellucid.tokenize.charsmap import CharsMap, Precompiled, SentencePiece
from pellucid.tokenize.compiled import Rewriting, Room, Texts
from pellucid.tokenize.normalize import Bert, Lowercase, Nmt, Normalizer, Prepend, Replace, StripAccents

Stages = Sequence[tuple[Normalizer, bool]]
Span = tuple[int, int]

ROOM = Room()
SINGLE = Replace(" {2,}", " ", is_pattern=True)
STAGES: dict[str, Stages] = {
    "bert": [(Bert(), False)],
    "bert, as written": [(Bert(cjk=False, strip_accents=False, lowercase=False), False)],
    "small": [(Lowercase(), False)],
    "nmt": [(Nmt(), False)],
    "no marks": [(StripAccents(), False), (Lowercase(), False)],
    "one space": [(SINGLE, False)],
    "▁": [(Prepend("▁"), False), (Replace(" ", "▁"), False)],
    "▁ unless there": [(Replace(" ", "▁"), False), (Prepend("▁", unless_there=True), False)],
    "▁ first": [(Replace(" ", "▁"), False), (Prepend("▁"), True)],
    "longer": [(Replace("a", "ä漢😀" * 9), False), (Prepend("bc", unless_there=True), False)],
    "shorter": [(Replace("漢", ""), False), (Replace("b", "a"), False), (Prepend("▁▁"), False)],
    "all": [(Nmt(), False), (Lowercase(), False), (SINGLE, False), (Prepend(" "), False)],
}
PLAIN = "abcAB XYZ.,!? éÉ漢字"
letters = st.text(st.sampled_from(PLAIN + "▁  \t\r\n\0\u0301\u0327\u200d\u200bİﬁΣ㎞각😀©️\u0600"), max_size=20)
any_texts = (
    letters
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.text(max_size=20, alphabet=" a▁")
)
some_texts = st.lists(any_texts, min_size=1, max_size=5)


@cache
def named(name: str) -> list[Rewriting]:
    return rewritings(STAGES[name])


def rewritings(stages: Stages) -> list[Rewriting]:
    maps = character_maps(stages)
    assert maps is not None
    return [Rewriting(one) for one in maps]


def rewritten(
    stages: Sequence[Rewriting], texts: Sequence[str], pieces: Sequence[Span] | None = None, room: Room = ROOM
) -> list[list[str | int]] | None:
    """The pieces of each text, and ids; None if the kernel gave up."""
    on_their_way = Texts.of(room, [text.encode() for text in texts], pieces)
    if not all(stage(on_their_way) for stage in stages):
        return None
    data, spans = on_their_way.text[0][: on_their_way.length].tobytes(), on_their_way.spans().tolist()
    ends = on_their_way.ends[0][: len(texts)].tolist()
    assert [begin for begin, _ in spans] == [
        0,
        *(end if end >= 0 else begin + 1 for begin, end in spans[:-1]),
    ]
    found: list[list[str | int]] = [[] for _ in texts]
    for begin, end in spans:
        text = sum(begin >= one for one in ends[:-1]) if begin < len(data) else len(texts) - 1
        found[text].append(data[begin:end].decode() if end >= 0 else -1 - end)
    return found


def expected(stages: Stages, text: str, first: bool = True) -> str:
    for stage, only_first in stages:
        text = stage(text) if first or not only_first else text
    return text


def check(stages: Stages, compiled: Sequence[Rewriting], texts: Sequence[str]) -> None:
    """Each text, and all of them, become what Python makes of them; only of strange ones may it be left to Python."""
    wanted = [[part] if (part := expected(stages, text)) else [] for text in texts]
    alone = [rewritten(compiled, [text]) for text in texts]
    for text, one, known in zip(texts, alone, wanted):
        if one is None:
            assert not set(text) <= set(PLAIN)
        else:
            assert [list(filter(None, parts)) for parts in one] == [known]
    together = rewritten(compiled, texts)
    assert together is not None or not set("".join(texts)) <= set(PLAIN)
    if together is not None:
        assert [list(filter(None, parts)) for parts in together] == wanted


@pytest.mark.parametrize("name", STAGES)
@settings(max_examples=50)
@given(some_texts)
def test_characters_become_what_they_do_in_python(name: str, texts: list[str]) -> None:
    check(STAGES[name], named(name), texts)


parts = st.text("ab ▁é\u0301\r\nXﬁ漢\u200d", max_size=9)
targets = st.text("ab é漢x", max_size=3).filter(lambda text: "  " not in text)
keys = st.text("ab ▁é\u0301\r\nXﬁ漢\u200d", min_size=1, max_size=4)
rules = st.dictionaries(keys, targets, max_size=8)


@settings(max_examples=100)
@given(rules, st.lists(parts, min_size=1, max_size=6), st.booleans())
def test_rules_for_clusters(rules: dict[str, str], texts: list[str], single: bool) -> None:
    stages = [(Precompiled(CharsMap(rules)), False), (SINGLE, False)][: 2 if single else 1]
    check(stages, rewritings(stages), texts)


@settings(max_examples=100)
@given(rules, st.lists(parts, min_size=1, max_size=6), st.booleans(), st.booleans(), st.booleans())
def test_rules_of_sentencepiece(
    rules: dict[str, str], texts: list[str], dummy: bool, extra: bool, escape: bool
) -> None:
    texts = [text.replace("▁", "") for text in texts]
    rules = {k.replace("▁", "-"): v for k, v in rules.items()}
    stages = [(SentencePiece(CharsMap(rules), dummy, extra, escape), False)]
    check(stages, rewritings(stages), texts)
