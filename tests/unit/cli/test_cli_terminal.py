"""The program in a terminal: a conversation, Ctrl-C and Ctrl-D, narrow terminals, the terminal's final state."""

from __future__ import annotations

import sys

import pytest

if sys.platform == "win32":
    pytest.skip("a terminal of POSIX is needed", allow_module_level=True)

from support.terminal import CTRL_C, CTRL_D, Terminal, terminal

pytestmark = pytest.mark.slow

SHOW, HIDE = "\x1b[?25h", "\x1b[?25l"
GREEDY = ("--temperature", "0", "--max-new-tokens", "8")


def left_sane(t: Terminal) -> bool:
    """True if the cursor is visible, the terminal echoes input, and no traceback was printed."""
    return t.output.rfind(HIDE) <= t.output.rfind(SHOW) and t.echoes and "Traceback" not in t.output


def test_chat(tiny: str) -> None:
    with terminal("chat", tiny, *GREEDY) as t:
        t.wait("/help lists the commands.")
        t.wait("> ")
        t.line("/help")
        assert "/reset   forget the conversation" in t.wait("Ctrl-C   stop the answer")
        t.wait("> ")
        t.line("/nonsense")
        t.wait("There is no /nonsense; /help lists the commands.")
        t.wait("> ")
        t.line("/reset")
        t.wait("The conversation is forgotten.")
        t.wait("> ")
        t.type("half a line")
        t.wait("half a line")
        t.interrupt("(Ctrl-D leaves)")
        t.wait("> ")
        t.type(CTRL_D)
        assert t.end() == 0
        assert left_sane(t)


def test_ctrl_c_stops_the_answer_and_not_the_program(endless: str) -> None:
    with terminal("chat", endless, "--temperature", "0") as t:
        t.wait("> ")
        for _ in range(2):
            t.line("rain?")
            t.wait("rain?\r\n")
            t.more(20)
            t.type(CTRL_C)
            t.wait(" [stopped]")
            t.wait("> ")
        t.type(CTRL_D)
        assert t.end() == 0
        assert left_sane(t)


def test_run_interrupted(endless: str) -> None:
    with terminal("run", endless, "--raw", "to see that it rains", "--temperature", "0") as t:
        t.more(20)
        t.type(CTRL_C)
        assert t.end() == 130
        assert t.output.endswith("\n")
        assert left_sane(t)


def test_an_answer_cannot_command_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pellucid.cli import common

    piece = "a\x1b]0;title\x07\tb\x9b31m\r\x7f\nц"
    common.write(piece)
    assert capsys.readouterr().out == piece
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    common.write(piece)
    assert capsys.readouterr().out == "a\ufffd]0;title\ufffd\tb\ufffd31m\ufffd\ufffd\nц"


def test_run_sums_up_how_it_went(tiny: str) -> None:
    with terminal("run", tiny, "--raw", "to see", *GREEDY) as t:
        assert t.end() == 0
        assert "+ 8 tokens, first after " in t.text.splitlines()[-1]
        assert left_sane(t)


BENCH = ("bench", "--rounds", "1", "--profile")


@pytest.mark.parametrize(
    "arguments", [("plan",), ("plan", "--measured"), BENCH, ("list",), ("embed", "a sentence", "another"), ("info",)]
)
def test_80_columns(tiny: str, encoder: str, arguments: tuple[str, ...]) -> None:
    name, *texts = arguments
    model = {"list": [], "embed": [encoder]}.get(name, [tiny])
    with terminal(name, *model, *texts) as t:
        assert t.end() == 0
        lines = [line for line in t.text.splitlines() if name != "bench" or "%" in line]
        if name != "info":  # paths and the notes of bench may be longer
            assert max(map(len, lines)) <= 80
        assert left_sane(t)


def test_no_color(tiny: str) -> None:
    with terminal("plan", tiny, env={"NO_COLOR": "1"}) as t:
        assert t.end() == 0
        assert "\x1b[3" not in t.output
    with terminal("plan", tiny, env={"TERM": "dumb"}) as t:
        assert t.end() == 0
        assert "\x1b" not in t.output


def test_names_do_nothing_to_the_terminal(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("hostile") / "red\x1b[31m\nline"
    folder.mkdir()
    with terminal("run", str(folder), "hi") as t:
        assert t.end() == 2
        assert t.output.startswith("pellucid: red\\x1b[31m\\nline: folder: holds no model")
        assert "\x1b" not in t.output
        assert t.output.count("\n") == 1
