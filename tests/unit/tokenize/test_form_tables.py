"""Tables of normalization forms for compiled code: each character with its parts, as in unicodedata."""

from __future__ import annotations

import unicodedata
from typing import get_args

import pytest

from pellucid.tokenize.compiled.rewrite_table import form_table
from pellucid.tokenize.stages.normalize import Form


def parts_of(form: Form, letter: str) -> str:
    """The characters that the table of a form writes for a letter."""
    table = form_table(form)
    place = int(table.places[ord(letter)])
    if place == 0:
        return letter
    count = int(table.written[place])
    return "".join(map(chr, table.written[place + 1 : place + 1 + count]))


@pytest.mark.parametrize("form", get_args(Form))
def test_letters_come_apart_canonically_or_compatibly(form: Form) -> None:
    apart = "NFKD" if "K" in form else "NFD"
    for letter in "aé\u1ea1ﬁ①ǆ½漢각\u0301\u2126":
        assert parts_of(form, letter) == unicodedata.normalize(apart, letter), letter  # type: ignore[arg-type]
    assert form_table(form).composes == (form in ("NFC", "NFKC"))
