"""The kernel "text.rewrite" equals ``tokenize/stages/normalize.py`` and ``tokenize/stages/precompiled_charsmap.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.tokenize.compiled.rewrite_table import MAX_TARGET_BYTES, RewriteStage, rewrite_stages
from pellucid.tokenize.compiled.workspace import TextBatch, Workspace
from pellucid.tokenize.stages.normalize import Bert, Lowercase, Nmt, Normalizer, Prepend, Replace, StripAccents
from pellucid.tokenize.stages.precompiled_charsmap import CharsMap, PrecompiledNormalizer, SentencePieceNormalizer

Stages = Sequence[tuple[Normalizer, bool]]
Span = tuple[int, int]
Pieces = list[list[str | int]]

WORKSPACE = Workspace()
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
PLAIN = frozenset("abcAB XYZ.,!? éÉ漢字")

letters = st.text("abcABX .éÉ漢字▁  \t\r\n\0\u0301\u0327\u200d\u200bİﬁΣ㎞각😀©️\u0600", max_size=20)
some_texts = st.lists(letters | st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5)
marked = st.text("ab é\u0301\r\nXﬁ漢\u200d©❤\u1100\u1161\u11a8", max_size=9)
marked_texts = st.lists(marked, min_size=1, max_size=6)
targets = st.text("ab é漢x", max_size=3).filter(lambda target: "  " not in target)
some_rules = st.dictionaries(marked.filter(bool).map(lambda key: key[:4]), targets, max_size=8)


@cache
def named(name: str) -> list[RewriteStage]:
    return compiled(STAGES[name])


def compiled(stages: Stages) -> list[RewriteStage]:
    found = rewrite_stages(stages)
    assert found is not None
    return found


def rewritten(
    stages: Sequence[RewriteStage],
    texts: Sequence[str],
    pieces: Sequence[Span] | None = None,
    workspace: Workspace = WORKSPACE,
) -> Pieces | None:
    """The non-empty pieces and the ids of each text; None if the kernel left them to Python."""
    batch = TextBatch.of(workspace, [text.encode() for text in texts], pieces)
    if not all(stage(batch) for stage in stages):
        return None
    data, spans = batch.text[0][: batch.length].tobytes(), batch.spans().tolist()
    ends, found, place = batch.ends[0][: len(texts)].tolist(), Pieces([] for _ in texts), 0
    for begin, end in spans:
        assert begin == place
        place = end if end >= 0 else begin + 1  # an id takes a byte
        if begin < place:
            part = data[begin:end].decode() if end >= 0 else -1 - end
            found[sum(begin >= one for one in ends[:-1])].append(part)
    assert place == ends[-1] == len(data)
    return found


def expected(stages: Stages, text: str, first: bool = True) -> str:
    for stage, only_first in stages:
        text = stage(text) if first or not only_first else text
    return text


def check(stages: Stages, rewriting: Sequence[RewriteStage], texts: Sequence[str]) -> None:
    """Texts, alone and together, become the same as in Python; only unusual characters may be left to Python."""
    wanted = [[made] if (made := expected(stages, text)) else [] for text in texts]
    for text, parts in zip(texts, wanted):
        assert rewritten(rewriting, [text]) in ([parts], *([None] if set(text) - PLAIN else []))
    assert rewritten(rewriting, texts) in (wanted, *([None] if set("".join(texts)) - PLAIN else []))


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
@settings(max_examples=50)
@given(some_texts)
def test_characters_become_what_they_do_in_python(name: str, texts: list[str]) -> None:
    check(STAGES[name], named(name), texts)


@pytest.mark.parametrize("name", ["bert, as written", "▁ first", "longer", "all"])
@settings(max_examples=50)
@given(st.lists(st.lists(st.tuples(st.text("ab É漢▁", max_size=5), st.booleans())), min_size=1, max_size=4))
def test_pieces_are_rewritten_by_themselves_and_ids_stay(name: str, texts: list[list[tuple[str, bool]]]) -> None:
    data, pieces, wanted, place = list[str](), list[Span](), Pieces(), 0
    for parts in texts:
        data.append("".join(part + "<" * has_id for part, has_id in parts))
        wanted.append([])
        begin = place
        for part, has_id in parts:
            pieces.append((place, place + len(part.encode())))
            wanted[-1] += filter(None, [expected(STAGES[name], part, place == begin)])
            place += len(part.encode()) + has_id
            if has_id:
                pieces.append((place - 1, -1 - len(pieces)))
                wanted[-1].append(len(pieces) - 1)
    assert rewritten(named(name), data, pieces) == wanted


@settings(max_examples=100)
@given(some_rules, marked_texts, st.booleans())
def test_a_rule_for_the_beginning_of_a_short_cluster_is_for_all_of_it(
    rules: Mapping[str, str], texts: list[str], single: bool
) -> None:
    stages = [(PrecompiledNormalizer(CharsMap(rules)), False), *([(SINGLE, False)] if single else [])]
    check(stages, compiled(stages), texts)


@settings(max_examples=100)
@given(some_rules, marked_texts, st.booleans(), st.booleans(), st.booleans(), st.lists(marked, max_size=2))
def test_of_the_rules_of_sentencepiece_the_longest_counts(
    rules: Mapping[str, str], texts: list[str], dummy: bool, extra: bool, escape: bool, kept: list[str]
) -> None:
    if extra:
        kept = [piece.replace("  ", " ") for piece in kept]
    if dummy and not extra:
        rules = {key: target or "-" for key, target in rules.items()}
    stages = [(SentencePieceNormalizer(CharsMap(rules), dummy, extra, escape, protected=kept), False)]
    check(stages, compiled(stages), texts)


def test_line_ends_and_marks_are_of_clusters() -> None:
    rules = {"\r": "|", "\n": "/", "e\u0301": "é", "a": "A", "é": "E", "\u0301": "'"}
    texts = ["\r\n\n\r", "e\u0301\u0327e", "a\u0301a", "x\u0301", "é\u0301", "é\u0301\u0301", "\r\u0301", "a\n\u0301"]
    made = [["|/|"], ["ée"], ["AA"], ["x'"], ["E"], ["E''"], ["|'"], ["A/'"]]
    stages = [(PrecompiledNormalizer(CharsMap(rules)), False)]
    assert rewritten(compiled(stages), texts) == made == [[expected(stages, text)] for text in texts]


def test_what_becomes_too_long_is_left_to_python() -> None:
    for stage in (
        Replace("a", "b" * (MAX_TARGET_BYTES + 1)),
        SentencePieceNormalizer(CharsMap({"ac": "b" * (MAX_TARGET_BYTES + 1)})),
    ):
        rewriting = compiled([(stage, False)])
        assert rewritten(rewriting, ["x", "xa"]) is None
        assert rewritten(rewriting, ["x", "xb"]) == [[stage("x")], [stage("xb")]]


def test_threads_do_not_disturb_each_other() -> None:
    texts = ["aA É " * n + "漢" for n in range(50)]
    wanted, workspaces = [[expected(STAGES["all"], text)] for text in texts], [Workspace(), Workspace()]
    with ThreadPoolExecutor(2) as pool:
        many = pool.map(
            lambda workspace: [rewritten(named("all"), texts, workspace=workspace) for _ in range(40)], workspaces
        )
        assert list(many) == [[wanted] * 40] * 2
