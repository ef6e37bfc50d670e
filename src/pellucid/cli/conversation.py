"""A conversation in the terminal: reads lines, answers them and keeps the conversation."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pellucid.cli import common
from pellucid.errors.messages import one_line

if TYPE_CHECKING:
    from pellucid.llm import LLM

END = "Ctrl-Z and Enter" if sys.platform == "win32" else "Ctrl-D"  # the end of input in a terminal
HELP = f"""/help    these lines
/reset   forget the conversation
/exit    leave ({END} too)
Ctrl-C   stop the answer"""


def talk(llm: LLM, start: list[dict[str, str]], options: Mapping[str, Any]) -> None:
    """Converse in a terminal. Input lines get editing and a history."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # ``input`` uses it
    print(f"{one_line(llm.spec.name)}. /help lists the commands.", file=sys.stderr)
    converse(llm, start, options)


def converse(llm: LLM, start: list[dict[str, str]], options: Mapping[str, Any]) -> None:
    """Read lines, answer them and keep the conversation, until the input ends."""
    from pellucid.errors import PellucidError

    messages = list(start)
    while (line := _ask()) is not None:
        match line.strip():
            case "":
                continue
            case "/help":
                print(HELP)
            case "/reset":
                messages = list(start)
                print("The conversation is forgotten.")
            case "/exit" | "/quit" | "/bye":
                return
            case command if command.startswith("/"):
                print(f"There is no {command.split()[0]}; /help lists the commands.")
            case text:
                messages.append({"role": "user", "content": text})
                try:
                    messages.append({"role": "assistant", "content": _answer(llm, messages, options)})
                except PellucidError as error:  # the conversation continues without the question
                    messages.pop()
                    print(
                        f"pellucid: {one_line(str(error))} (/reset forgets the conversation)",
                        file=sys.stderr,
                    )


def _ask() -> str | None:
    """A line of input, or None at its end. Ctrl-C at the prompt discards the line."""
    if not sys.stdin.isatty():
        return sys.stdin.readline() or None
    while True:
        try:
            return input("> ")
        except KeyboardInterrupt:
            print(f"\n({END} leaves)")
        except EOFError:
            print()
            return None


def _answer(llm: LLM, messages: list[dict[str, str]], options: Mapping[str, Any]) -> str:
    """Stream an answer. Ctrl-C stops it; the text so far is kept."""
    texts: list[str] = []
    try:
        pieces: Any = iter(llm.start(messages, **options))
        with contextlib.closing(pieces):
            for piece in pieces:
                texts.append(piece.text)
                common.write(piece.text)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():  # without a terminal there is no next question
            raise
        print(" [stopped]", end="")
    print(flush=True)
    return "".join(texts)
