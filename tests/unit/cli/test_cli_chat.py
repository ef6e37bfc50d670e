"""The conversation that chat keeps. A fake model records its messages."""

from __future__ import annotations

import io
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from support.command import Command

from pellucid.cli.commands import run
from pellucid.cli.commands.run import converse
from pellucid.errors import ContextOverflow, ModelNotFound
from pellucid.tokenize.chat import template

SYSTEM = {"role": "system", "content": "Be brief."}


class Scribe:
    """Answers "1", "2", ...; refuses the question "long"; the answer to "stop!" is interrupted after one output."""

    def __init__(self) -> None:
        self.asked: list[list[dict[str, str]]] = []

    def start(self, messages: list[dict[str, str]], **options: Any) -> Iterator[Any]:
        if messages[-1]["content"] == "long":
            raise ContextOverflow("too\nlong")
        self.asked.append([dict(message) for message in messages])
        return self._pieces(str(len(self.asked)), messages[-1]["content"] == "stop!")

    def _pieces(self, answer: str, interrupted: bool) -> Iterator[Any]:
        yield SimpleNamespace(text=answer)
        if interrupted:
            raise KeyboardInterrupt


class Keyboard(io.StringIO):
    """Standard input that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def scribe() -> Scribe:
    return Scribe()


def talk(scribe: Scribe, monkeypatch: pytest.MonkeyPatch, stdin: io.StringIO) -> None:
    monkeypatch.setattr("sys.stdin", stdin)
    converse(scribe, [SYSTEM], {})  # type: ignore[arg-type]


def test_the_conversation_is_kept(scribe: Scribe, monkeypatch: pytest.MonkeyPatch) -> None:
    talk(scribe, monkeypatch, io.StringIO("a\n \n b \n"))
    user = [{"role": "user", "content": text} for text in ("a", "b")]
    assert scribe.asked == [[SYSTEM, user[0]], [SYSTEM, user[0], {"role": "assistant", "content": "1"}, user[1]]]


def test_reset_forgets_all_but_the_system_message(scribe: Scribe, monkeypatch: pytest.MonkeyPatch) -> None:
    talk(scribe, monkeypatch, io.StringIO("a\n/reset\nb\n/nonsense\n/exit\nc\n"))
    assert scribe.asked[1:] == [[SYSTEM, {"role": "user", "content": "b"}]]


def test_a_question_that_is_refused_is_not_part_of_it(
    scribe: Scribe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(scribe, monkeypatch, io.StringIO("long\na\n"))
    assert scribe.asked == [[SYSTEM, {"role": "user", "content": "a"}]]
    assert capsys.readouterr().err == "pellucid: too long (/reset forgets the conversation)\n"


def test_what_an_interrupted_answer_said_is_kept(
    scribe: Scribe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(scribe, monkeypatch, Keyboard("stop!\nb\n"))
    assert scribe.asked[1][2] == {"role": "assistant", "content": "1"}
    assert "1 [stopped]\n" in capsys.readouterr().out


def test_nobody_is_there_to_go_on_after_an_interrupt(scribe: Scribe, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        talk(scribe, monkeypatch, io.StringIO("stop!\nb\n"))


def test_a_template_process_starts_before_the_model_is_loaded(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []

    def load(*_: Any, **__: Any) -> None:
        done.append("load")
        raise ModelNotFound("no model")

    monkeypatch.setattr(template, "start_ahead", lambda: done.append("start"))
    monkeypatch.setattr(run, "load", load)
    assert command("chat", "nothing").code == 2
    assert done == ["start", "load"]
