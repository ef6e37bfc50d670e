"""pellucid run MODEL PROMPT: answers a prompt, or continues it as text. pellucid chat MODEL: a conversation."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.conversation import messages, prompt_text, say_form, talk, with_form
from pellucid.cli.loading import DraftLoading, load, with_template
from pellucid.cli.output_file import OutputFile
from pellucid.cli.sampling_options import ControlOptions, checked, steered
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import shown

if TYPE_CHECKING:
    from pellucid.engine.inputs import Inputs, PromptInput
    from pellucid.engine.output import Generation
    from pellucid.llm import LLM

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


RUN = Command("run", run_command, sampling=True)


# pellucid chat MODEL [PROMPT]: a conversation with a model in the terminal, or one answer.


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


CHAT = Command("chat", chat_command, sampling=True)
