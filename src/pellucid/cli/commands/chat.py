"""pellucid chat MODEL: chat with a model in the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.loading import DraftLoading, load
from pellucid.cli.sampling_options import checked
from pellucid.errors.messages import one_line

if TYPE_CHECKING:
    from pellucid.llm import LLM

HELP = """/help    these lines
/reset   forget the conversation
/exit    leave (Ctrl-D too)
Ctrl-C   stop the answer"""


def command(
    model: common.Model,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    *,
    loading: DraftLoading,
    **sampling: Any,
) -> None:
    """Chat with a model. The conversation is remembered; /help lists the commands."""
    from pellucid.tokenize.chat.template_process import start_ahead

    options = checked(sampling)
    start_ahead()  # the template process starts while the model is loaded
    start = [{"role": "system", "content": system}] if system is not None else []
    first = [*start, {"role": "user", "content": "Hi"}]  # a model without a chat template is rejected first
    llm = load(model, loading, lambda inputs: inputs.prompt(first))
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # input lines get editing and a history
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
            print("\n(Ctrl-D leaves)")
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


COMMAND = Command("chat", command, sampling=True)
