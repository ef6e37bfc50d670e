"""pellucid run MODEL PROMPT: answers a prompt, or continues it as text. pellucid chat MODEL: a conversation."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli import common
from pellucid.cli.command import command
from pellucid.cli.options import ControlOptions, DraftLoading, checked, load, steered, with_template
from pellucid.cli.output_file import OutputFile
from pellucid.errors import InvalidRequest, PellucidError, one_line, shown
from pellucid.util.checks import characters

if TYPE_CHECKING:
    from pellucid.engine.inputs import Inputs, PromptInput
    from pellucid.engine.output import Generation
    from pellucid.llm import LLM

# The prompt of ``pellucid run`` and ``chat``: words, files and standard input, as a message or as raw text.

NOTICE_AFTER = 2.0
"""Seconds without input until a message says that standard input is being read."""
WAITING = "pellucid: reading standard input until it ends; < /dev/null leaves it out"


def prompt_text(words: Sequence[str] | None) -> str | None:
    """The text of the prompt; None if there are no words, and standard input is a terminal.

    Words are joined by spaces, ``@FILE`` stands for a text file, and ``-`` for standard input. Standard input that is
    not a terminal comes first, unless it is empty. Files and standard input are parts of their own: a blank line is
    between two parts. The last line break of a file or of standard input is not part of the prompt.
    """
    given = list(words or ())
    parts = list(_parts(given))
    if "-" not in given and not sys.stdin.isatty():
        text = _standard_input()
        if text or not parts:
            parts.insert(0, text)
    return characters("text", "\n\n".join(parts)) if parts else None


def _parts(words: list[str]) -> Iterator[str]:
    for separate, group in groupby(words, lambda word: word == "-" or common.names_a_file(word)):
        if not separate:
            yield " ".join(map(common.text_or_file, group))
            continue
        for word in group:
            yield _standard_input() if word == "-" else _without_last_break(common.text_or_file(word))


def _without_last_break(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


def _standard_input() -> str:
    """The text of standard input. A message explains a long wait, as some programs leave the input of others open."""
    notice = threading.Timer(NOTICE_AFTER, print, (WAITING,), {"file": sys.stderr})
    notice.daemon = True
    if not sys.stdin.isatty():
        notice.start()
    try:
        return _without_last_break(common.standard_input())
    finally:
        notice.cancel()


def with_form(inputs: Inputs, text: str, *, system: str | None, raw: bool | None) -> PromptInput:
    """The prompt as a message to an instruct model, or as the text that a base model continues.

    ``raw`` decides if it is not None: True continues the text, False uses the chat template of any model.
    """
    why = "--raw continues the text" if raw else f"the model is a base model ({inputs.why_base})"
    if raw or (raw is None and inputs.why_base):
        if system:
            raise InvalidRequest(f"--system: {why}: leave --system out, or use the chat template (--chat)")
        return text
    return messages(text, system)


def messages(text: str, system: str | None) -> list[dict[str, Any]]:
    """A conversation of one message, after the system message if there is one. Raises InvalidRequest if it is empty."""
    from pellucid.util import checks

    start = [] if system is None else [{"role": "system", "content": system}]
    return [*start, {"role": "user", "content": checks.text("text", text)}]


def say_form(name: str, inputs: Inputs) -> None:
    """Print a line on standard error: whether the model ``name`` answers the prompt or continues it, and why."""
    line = f"{shown(name)} is an instruct model, so it answers the prompt; --raw continues it as text"
    if inputs.why_base and not inputs.spec.encoder:  # an encoder-decoder answers a source
        line = f"{shown(name)} is a base model ({inputs.why_base}), so it continues the prompt as text"
        line += "; --chat uses its template" if inputs.tokenizer.chat_template else ""
    print(f"pellucid: {line}", file=sys.stderr)


# A conversation in the terminal: reads lines, answers them and keeps the conversation.

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
                    print(f"pellucid: {one_line(str(error))} (/reset forgets the conversation)", file=sys.stderr)


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


# pellucid run MODEL PROMPT: answer a prompt, or continue it as text.

Words = Annotated[
    list[str] | None,
    common.argument(
        "PROMPT",
        "The prompt. @FILE: the text of a file; -: standard input. Input from a pipe or a file comes before the "
        "prompt. Without both: a conversation in the terminal.",
        ...,
    ),
]
System = Annotated[str | None, common.text("TEXT", "The system message, or @FILE.", ...)]
Template = Annotated[
    str | None, common.text("FILE", "A chat template (Jinja), instead of the template in the model's file.", ...)
]
Verbose = Annotated[
    bool, common.flag("--verbose", "Print tokens and times after the text, also if standard error is no terminal.", ...)
]


@command("run", sampling=True)
def run_command(
    model: common.Model,
    prompt: Words = None,
    system: System = None,
    raw: bool | None = typer.Option(
        None,
        "--raw/--chat",
        help="Continue the prompt as text, or answer it through the chat template. Default: instruct models "
        "answer, base models continue; a line on standard error says which.",
        show_default=False,
    ),
    chat_template: Template = None,
    verbose: Verbose = False,
    *,
    loading: DraftLoading,
    control: ControlOptions,
    logprobs: int | None = common.count(
        "With --json: log-probabilities of each generated token and of the N most likely tokens."
    ),
    prompt_logprobs: int | None = common.count(
        "With --json: log-probabilities of each prompt token and of N alternatives."
    ),
    receipt: str | None = common.text("FILE", "Write a receipt of the run, which `pellucid verify-run FILE` replays."),
    json: common.Json = False,
    **sampling: Any,
) -> None:
    """Answer a prompt, or continue it as text (--raw). The text appears token by token."""
    from pellucid.tokenize.chat.template import start_ahead

    for name, value in (("logprobs", logprobs), ("prompt-logprobs", prompt_logprobs)):
        if value is not None and not json:
            raise typer.BadParameter(
                f"--{name} {shown(str(value))}: log-probabilities are printed with --json only; add --json"
            )
    options = checked({**sampling, "logprobs": logprobs, "prompt_logprobs": prompt_logprobs})
    receipt_file = None
    if receipt is not None:
        options["receipt"], receipt_file = True, OutputFile("receipt", Path(receipt), [model])
    vector = control.vector()
    text, system = prompt_text(prompt), None if system is None else common.text_or_file(system)
    loading = with_template(loading, chat_template)
    if chat_template and raw is None:
        raw = False
    if not raw:
        start_ahead()  # the template process starts while the model is loaded

    def read(inputs: Inputs) -> PromptInput:
        if text is None:
            _refuse_conversation(inputs, raw)
        form = with_form(inputs, "Hi" if text is None else text, system=system, raw=raw)
        inputs.prompt(form)  # refuses a prompt that does not fit, before kernels compile
        return form

    llm = load(model, loading, read)
    options = steered(options, vector, llm)
    if text is None:
        if receipt is not None:
            raise typer.BadParameter("--receipt is for one run, not for a conversation: give a prompt")
        talk(llm, messages("Hi", system)[:-1], options)
        return
    if raw is None:
        say_form(model, llm.inputs)
    form = with_form(llm.inputs, text, system=system, raw=raw)
    generate(llm, form, options, json=json, verbose=verbose, receipt_file=receipt_file)


def _refuse_conversation(inputs: Inputs, raw: bool | None) -> None:
    """Raise InvalidRequest for a missing prompt if the model continues text, which is no conversation."""
    if raw or (raw is None and inputs.why_base):
        why = "--raw continues a text" if raw else f"this is a base model ({inputs.why_base})"
        more = ", or --chat for a conversation" if inputs.tokenizer.chat_template else ""
        raise InvalidRequest(f"no prompt, and {why}: give a text, - to read it from standard input{more}")


def generate(
    llm: LLM,
    prompt: PromptInput,
    options: Mapping[str, Any],
    *,
    json: bool = False,
    verbose: bool = False,
    receipt_file: OutputFile | None = None,
) -> None:
    """Generate, and print the text token by token, or one JSON document at the end.

    ``receipt_file`` gets the receipt of the run, if the options request a receipt.
    """
    run = llm.start(prompt, **options)
    for piece in run:
        if not json:
            common.write(piece.text)
    result = run.result()
    if receipt_file is not None and result.receipt is not None:
        receipt_file.write(result.receipt.as_json())
    if json:
        common.print_json(result.as_dict())
        return
    print()
    if verbose or sys.stderr.isatty():
        print(summary(result), file=sys.stderr)


def summary(result: Generation) -> str:
    """One line about a generation: tokens, times, finish reason, seed, accepted draft tokens."""
    seed, usage = "" if result.seed is None else f", seed {result.seed}", result.usage
    speculation = f", {usage.accepted_tokens} of {usage.proposed_tokens} draft tokens accepted"
    return (
        f"[{result.usage.prompt_tokens} + {len(result.ids)} tokens, first after {result.timings.first_token:.2f} s, "
        f"then {result.tokens_per_second:.0f} per second, {result.finish_reason}{seed}"
        f"{speculation if usage.proposed_tokens else ''}]"
    )


@command("chat", sampling=True)
def chat_command(
    model: common.Model,
    prompt: Words = None,
    system: System = None,
    chat_template: Template = None,
    verbose: Verbose = False,
    *,
    loading: DraftLoading,
    control: ControlOptions,
    **sampling: Any,
) -> None:
    """Chat with a model in the terminal, or answer one PROMPT.

    The conversation is remembered; /help lists its commands.
    """
    from pellucid.tokenize.chat.template import start_ahead

    options, vector = checked(sampling), control.vector()
    text, system = prompt_text(prompt), None if system is None else common.text_or_file(system)
    loading = with_template(loading, chat_template)
    start_ahead()  # the template process starts while the model is loaded

    def conversation() -> list[dict[str, Any]]:
        return messages("Hi" if text is None else text, system)

    # A model without a chat template, or a prompt that does not fit, is refused before kernels compile.
    llm = load(model, loading, lambda inputs: inputs.prompt(conversation()))
    options = steered(options, vector, llm)
    if text is None:
        talk(llm, conversation()[:-1], options)
    else:
        generate(llm, conversation(), options, verbose=verbose)
