"""The kernel "text.split" equals the stages of ``tokenize/stages/pretokenize.py``, run with ``matcher.py``."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.letters import CHANGED

from pellucid.errors import InvalidRequest
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.library import shared
from pellucid.kernels.text import pieces as text_pieces
from pellucid.kernels.text import split as text_split
from pellucid.runtime.memory import address
from pellucid.tokenize.compiled.compiled_pipeline import SplitStage
from pellucid.tokenize.compiled.workspace import TextBatch, Workspace
from pellucid.tokenize.patterns import published
from pellucid.tokenize.patterns.automaton import automaton
from pellucid.tokenize.stages.pretokenize import Split

WORKSPACE = Workspace()
SMALL = ["a", "ab|a", "a{2,3}", "b+(?!c)", r"[ac]+?b"]
PATTERNS = [published.GPT2, published.LLAMA3, published.O200K, published.DIGIT, *SMALL]
LETTERS = st.sampled_from("abcAé漢1²'s  \t\n\r\u00a0\U0001f600") | st.sampled_from(CHANGED)
texts = st.text(LETTERS | st.characters(exclude_categories=["Cs"]), max_size=40)
words = st.text("abc \n", max_size=12)


def compiled(pattern: str, behavior: str, inverted: bool, text: str, pieces: list[tuple[int, int]]) -> list[str]:
    """The kernel's pieces of the given ``pieces`` (spans in bytes)."""
    data = np.frombuffer(text.encode() + bytes(text_pieces.PADDING), np.uint8)
    table, given_, made = automaton(pattern), np.array(pieces, np.int32).reshape(-1, 2), np.zeros(1, np.int64)
    assert table is not None
    out = np.full((len(data), 2), -1, np.int32)
    fields = {
        "text": address(data), "pieces": address(given_), "count": len(given_), "classes": address(table.classes),
        "starts": address(table.starts), "table": address(table.table), "columns": table.table.shape[1],
        "inverted": int(inverted), "most_steps": 1 << 40,
        "behavior": text_split.BEHAVIORS.index(behavior), "out": address(out), "made": address(made),
    }  # fmt: skip
    record = np.array(text_split.SplitRecord.pack(fields), np.int64)
    shared().function(KernelKey("text.split"))(address(record), 0, 0, 0)
    assert (out[made[0] :] == -1).all()
    return [data[begin:end].tobytes().decode() for begin, end in out[: made[0]]]


@pytest.mark.parametrize("behavior", text_split.BEHAVIORS)
@settings(max_examples=100)
@given(st.sampled_from(PATTERNS), st.booleans(), texts | words)
def test_the_kernel_cuts_as_the_stage_does(behavior: str, pattern: str, inverted: bool, text: str) -> None:
    cut = len(text[: len(text) // 2].encode())
    whole = compiled(pattern, behavior, inverted, text, [(0, len(text.encode()))])
    halves = compiled(pattern, behavior, inverted, text, [(0, cut), (cut, len(text.encode()))])
    stage = Split(pattern, behavior, inverted)
    assert whole == stage(text)
    assert halves == [*stage(text[: len(text) // 2]), *stage(text[len(text) // 2 :])]


@pytest.mark.parametrize("behavior", text_split.BEHAVIORS)
@given(st.sampled_from(PATTERNS), st.booleans(), st.lists(texts | words, min_size=1, max_size=4))
def test_texts_are_cut_by_themselves_and_ids_stay(
    behavior: str, pattern: str, inverted: bool, texts: list[str]
) -> None:
    table, stage = automaton(pattern), Split(pattern, behavior, inverted)
    assert table is not None
    pieces, expected, place = list[tuple[int, int]](), list[str | int](), 0
    for index, text in enumerate(texts):
        end = place + len(text.encode())
        pieces += [(place, end), (end, -1 - index)]
        expected += [*stage(text), -1 - index]
        place = end + 1
    data = "".join(f"{text}." for text in texts).encode()
    batch = TextBatch.of(WORKSPACE, [data], pieces)
    assert SplitStage(pattern, table, behavior, inverted)(batch)
    spans = batch.spans().tolist()
    assert [end if end < 0 else data[begin:end].decode() for begin, end in spans] == expected


def test_steps_are_counted() -> None:
    """Each character is tried as a start that fails at the end of the text, which is quadratic for any pattern."""
    table = automaton("a+b")
    assert table is not None
    cutting = SplitStage("a+b", table, "Isolated", False)
    assert cutting(TextBatch.of(WORKSPACE, [b"a" * 1_000]))
    with pytest.raises(InvalidRequest, match=r"pattern 'a\+b' takes more than 26,600,000 steps for 100,000 bytes"):
        cutting(TextBatch.of(WORKSPACE, [b"a" * 100_000]))
