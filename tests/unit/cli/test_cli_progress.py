"""Progress of downloads and of compilation: lines if the output is no terminal, temporary bars in a terminal."""

from __future__ import annotations

import time

import pytest

from pellucid.cli import common


def report(bars: common.Bars) -> None:
    for done in (0, 1_500_000, 3_000_000):
        bars.update(done, 3_000_000, "mine")
    bars.update(0, None, "mine: waiting")
    bars.update(700, None, "mine: waiting")
    for done in range(3):
        bars.compiling(done, 2, "norm")


def test_a_line_each_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with common.progress() as bars:
        report(bars)
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "fetching mine",
        "fetching mine: waiting",
        "compiling kernels, once for this machine",
    ]
    assert captured.out == ""


def test_what_cannot_be_kept_is_not_compiled_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pellucid.kernels.core.library.can_cache", lambda: False)
    with common.progress() as bars:
        bars.compiling(0, 2, "norm")
    assert capsys.readouterr().err == "compiling kernels\n"


@pytest.mark.parametrize("columns", ["80", "60"])
def test_bars_fit_into_a_terminal_and_go_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for name, value in (("COLUMNS", columns), ("FORCE_COLOR", "1"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    with common.progress() as bars:
        report(bars)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "3.0 MB of 3.0 MB" in captured.err
    assert "2 of 2" in captured.err
    assert captured.err.rfind("\x1b[?25l") < captured.err.rfind("\x1b[?25h")  # the cursor is visible again


def test_a_still_bar_is_drawn_only_when_there_is_news(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for name, value in (("COLUMNS", "80"), ("FORCE_COLOR", "1"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    with common.progress(still=True) as bars:
        bars.measuring(0, 2, "decode")
        assert "decode" in capsys.readouterr().err
        time.sleep(0.3)
        assert capsys.readouterr().err == ""
        bars.measuring(1, 2, "prefill")
        assert "prefill" in capsys.readouterr().err
