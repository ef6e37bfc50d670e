"""Tables of commands: numbers never wrap, texts wrap at the width of the terminal."""

from __future__ import annotations

import pytest

from pellucid.cli import common

NUMBER, TEXT = "1234567890.25", "a text of several words that does not fit"


@pytest.mark.parametrize("width", [30, 60])
def test_numbers_stay_whole_and_texts_wrap(capsys: pytest.CaptureFixture[str], width: int) -> None:
    from rich.console import Console

    made = common.table("name", ">value")
    made.add_row(TEXT, NUMBER)
    made.add_row("b", "7")
    Console(width=width).print(made)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= width for line in lines)
    assert lines[1].endswith(NUMBER)
    assert lines[-1].rstrip().endswith("7")
    assert lines[0].rstrip().endswith(" value"), "the title stands above the end of its numbers"
    words = " ".join(line.replace(NUMBER, "").strip() for line in lines[1:-1])
    assert words == TEXT
    assert (len(lines) == 3) == (width == 60)
