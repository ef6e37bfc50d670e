"""pellucid chat MODEL [PROMPT]: a conversation with a model in the terminal, or one answer."""

from __future__ import annotations

from typing import Any

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.commands.run import System, Template, Verbose, Words, generate
from pellucid.cli.control_options import ControlOptions, steered
from pellucid.cli.conversation import talk
from pellucid.cli.loading import DraftLoading, load, with_template
from pellucid.cli.prompts import messages, prompt_text
from pellucid.cli.sampling_options import checked


def command(
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
    from pellucid.tokenize.chat.template_process import start_ahead

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


COMMAND = Command("chat", command, sampling=True)
