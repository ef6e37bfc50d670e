"""The kernel "text.normalize" equals ``tokenize/stages/normalize.py``, which uses ``unicodedata``."""

from __future__ import annotations

import random
import unicodedata
from functools import cache
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.endless import never_endless
from support.letters import CHANGED

from pellucid.kernels.text.normalize import MAX_PARTS
from pellucid.tokenize.compiled.rewrite_table import NormalizeStage, form_table
from pellucid.tokenize.compiled.workspace import TextBatch, Workspace
from pellucid.tokenize.stages.aligned import AlignedText
from pellucid.tokenize.stages.normalize import Form, Normalize
from pellucid.tokenize.unicode import complement, letters, members

FORMS = get_args(Form)
WORKSPACE = Workspace()
KNOWN = letters(members("text.normalized") or ())
MARKS = "".join(letter for letter in KNOWN if unicodedata.combining(letter))
some = st.sampled_from(KNOWN) | st.sampled_from(MARKS) | st.sampled_from("ab q éạ漢각\u1100\u1161\u11a8" + CHANGED)
texts = st.lists(st.text(some, max_size=12) | st.text(st.characters(exclude_categories=["Cs"])), min_size=1)


@cache
def stage(form: Form) -> NormalizeStage:
    return NormalizeStage(form_table(form))


def normalized(form: Form, texts: list[str]) -> list[str] | None:
    """The normalized texts; None if the kernel left them to Python."""
    batch = TextBatch.of(WORKSPACE, [text.encode() for text in texts])
    if not stage(form)(batch):
        return None
    data = batch.text[0].tobytes()
    return [data[begin:end].decode() for begin, end in batch.spans().tolist()]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=300)
@given(texts)
def test_texts_are_in_the_form(form: Form, texts: list[str]) -> None:
    assert normalized(form, texts) == list(map(Normalize(form), texts))


@pytest.mark.parametrize("form", FORMS)
def test_every_character_is(form: Form) -> None:
    every = letters(complement(((0xD800, 0xDFFF),)))
    parts = [every[at : at + 50] for at in range(0, len(every), 50)]
    parts += list(KNOWN)
    assert normalized(form, parts) == list(map(Normalize(form), parts))


@pytest.mark.parametrize("form", FORMS)
def test_characters_with_marks_in_any_order_are(form: Form) -> None:
    draw = random.Random(3)
    many = [letter + "".join(draw.choices(MARKS, k=draw.randrange(1, 5))) for letter in KNOWN for _ in "12"]
    assert normalized(form, many) == list(map(Normalize(form), many))


@pytest.mark.parametrize("form", FORMS)
def test_more_marks_than_there_is_room_for_are_for_python(form: Form) -> None:
    assert normalized(form, ["a" + "\u0301\u0323" * (MAX_PARTS // 2 - 1)]) is not None
    assert normalized(form, ["a" + "\u0301\u0323" * (MAX_PARTS // 2)]) is None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "text",
    [
        "a\u1df6\u0316" + "\u0301" * 70,
        "a" + "\u0301" * 30 + "\u1df6\u0316" + "\u0301" * 40,
        "é\u0316" + "\u0323\u0301" * 50,
    ],
    ids=["after a newer mark", "around one", "of an accented letter"],
)
def test_many_marks_are_in_the_order_in_which_few_are(form: Form, text: str) -> None:
    wanted = Normalize(form).aligned(AlignedText.of(text)).text
    assert Normalize(form)(text) == wanted
    assert normalized(form, [text]) == [wanted]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_marks_without_end_take_no_time(form: Form) -> None:
    many = 150_000  # unicodedata would take minutes
    wanted = ("\u1ea1" if form in ("NFC", "NFKC") else "a\u0323") + "\u0323" * (many - 1) + "\u0301" * many
    with never_endless():
        assert len(Normalize(form)("a" + "\u0301\uff9e" * many)) == 2 * many + (form not in ("NFC", "NFKC"))
        assert Normalize(form)("a" + "\u0301\u0323" * many) == wanted
