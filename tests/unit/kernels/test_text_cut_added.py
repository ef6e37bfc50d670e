"""The kernel "text.added" cuts out the same tokens as ``tokenize/stages/pretokenize.py``."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.tokenize.compiled.compiled_pipeline import AddedTokenStage
from pellucid.tokenize.compiled.workspace import TextBatch, Workspace
from pellucid.tokenize.stages.pretokenize import AddedToken, AddedTokens

Span = tuple[int, int]

WORKSPACE = Workspace()
LETTERS = "ab<|>é漢😀"
tokens = st.lists(
    st.tuples(st.text(LETTERS, max_size=6) | st.sampled_from(["<|a|>", "<|ab|>", "<|"]), st.booleans()),
    max_size=12,
    unique_by=lambda token: token[0],
)
texts = st.lists(
    st.lists(st.text(LETTERS, max_size=6) | st.sampled_from(["<|a|>", "<|ab|>", "\n"])).map("".join),
    min_size=1,
    max_size=5,
)


def listed(tokens: Sequence[tuple[str, bool]]) -> AddedTokens:
    return AddedTokens(AddedToken(100 + at, text, special) for at, (text, special) in enumerate(tokens))


def adding(added: AddedTokens, parse_special: bool) -> AddedTokenStage:
    emitted = [-1 if token.special and not parse_special else token.id for token in added]
    return AddedTokenStage([token.text.encode() for token in added], np.array(emitted, np.int32))


def cut(
    stage: AddedTokenStage,
    texts: Sequence[str],
    pieces: Sequence[Span] | None = None,
    workspace: Workspace | None = None,
) -> list[Span]:
    batch = TextBatch.of(workspace or WORKSPACE, [text.encode() for text in texts], pieces)
    assert stage(batch)
    return [(begin, end) for begin, end in batch.spans().tolist()]


def spans(added: AddedTokens, text: str, parse_special: bool, place: int = 0) -> list[Span]:
    """Spans of a text by the Python implementation, in bytes. The first span begins at ``place``."""
    places = [place + len(text[:at].encode()) for at in range(len(text) + 1)]
    return [
        (places[start], places[stop] if index is None else -1 - index)
        for start, stop, index in added.split(text, parse_special)
    ]


@settings(max_examples=200)
@given(tokens, st.booleans(), texts)
def test_the_leftmost_and_then_the_longest_is_cut_out(
    tokens: list[tuple[str, bool]], parse_special: bool, texts: list[str]
) -> None:
    added = listed(tokens)
    stage, expected, place = adding(added, parse_special), list[Span](), 0
    for text in texts:
        assert cut(stage, [text]) == spans(added, text, parse_special)
        expected += spans(added, text, parse_special, place)
        place += len(text.encode())
    assert cut(stage, texts) == expected


@settings(max_examples=100)
@given(tokens, st.booleans(), texts)
def test_pieces_are_cut_by_themselves_and_ids_stay(
    tokens: list[tuple[str, bool]], parse_special: bool, parts: list[str]
) -> None:
    added, pieces, expected, place = listed(tokens), list[Span](), list[Span](), 0
    for index, part in enumerate(parts):
        end = place + len(part.encode())
        pieces += [(place, end), (end, -1 - index)]
        expected += [*spans(added, part, parse_special, place), (end, -1 - index)]
        place = end + 1
    assert cut(adding(added, parse_special), [f"{part}<" for part in parts], pieces) == expected


def test_what_a_user_wrote_is_found_and_left() -> None:
    added = listed([("<|a|>", True), ("a|>b", False), ("|", False)])
    assert cut(adding(added, True), ["<|a|>b|"]) == [(0, -101), (5, 6), (6, -103)]
    assert cut(adding(added, False), ["<|a|>b|"]) == [(0, 6), (6, -103)]


def test_threads_do_not_disturb_each_other() -> None:
    added = listed([("<|a|>", True), ("ab", False), ("b", False)])
    stage, data = adding(added, True), ["<|a|>ab é" * n for n in range(50)]
    expected, workspaces = cut(stage, data), [Workspace(), Workspace()]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda workspace: [cut(stage, data, workspace=workspace) for _ in range(40)], workspaces))
    assert found == [[expected] * 40] * 2
