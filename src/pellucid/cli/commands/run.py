"""pellucid run MODEL PROMPT: continue a text."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.loading import DraftLoading, load
from pellucid.cli.sampling_options import checked
from pellucid.errors.messages import shown

if TYPE_CHECKING:
    from pellucid.engine.output import Generation


def command(
    model: common.Model,
    prompt: common.Prompt = None,
    *,
    loading: DraftLoading,
    logprobs: Annotated[
        int | None,
        common.count(
            "With --json: log-probabilities of each generated token and of the N most likely tokens."
        ),
    ] = None,
    prompt_logprobs: Annotated[
        int | None, common.count("With --json: log-probabilities of each prompt token and of N alternatives.")
    ] = None,
    json: common.Json = False,
    **sampling: Any,
) -> None:
    """Continue a text. The generated text appears token by token."""
    for name, value in (("logprobs", logprobs), ("prompt-logprobs", prompt_logprobs)):
        if value is not None and not json:
            raise typer.BadParameter(
                f"--{name} {shown(str(value))}: log-probabilities are printed with --json only; add --json"
            )
    options = checked({**sampling, "logprobs": logprobs, "prompt_logprobs": prompt_logprobs})
    text = common.text_or_stdin(prompt, "no prompt")
    llm = load(model, loading, lambda inputs: inputs.prompt(text))
    run = llm.start(text, **options)
    for piece in run:
        if not json:
            common.write(piece.text)
    result = run.result()
    if json:
        common.print_json(result.as_dict())
        return
    print()
    if sys.stderr.isatty():
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


COMMAND = Command("run", command, sampling=True)
