"""pellucid run MODEL PROMPT: continue a text."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pellucid.cli import common

if TYPE_CHECKING:
    from pellucid.llm import Generation


def command(
    model: common.Model,
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="The text to continue; - or nothing reads it from standard input.", metavar="PROMPT"
        ),
    ] = None,
    temperature: common.Temperature = 0.8,
    top_k: common.TopK = 40,
    top_p: common.TopP = 0.95,
    seed: common.Seed = None,
    stop: common.Stop = None,
    max_new_tokens: common.MaxNewTokens = None,
    threads: common.Threads = None,
    context: common.Context = None,
    precise: common.Precise = False,
    kv_cache: common.KVCache = None,
    json: common.Json = False,
) -> None:
    """Continue a text. The answer appears as it is made."""
    options = common.sampling(temperature, top_k, top_p, seed, stop, max_new_tokens)
    given = common.text_or_stdin(prompt, "no prompt")
    llm = common.load(model, threads, context, precise, kv_cache, before=lambda inputs: inputs.prompt(given))
    run = llm.start(given, **options)
    text = []
    for piece in run:
        text.append(piece.text)
        if not json:
            common.write(piece.text)
    result = run.result("".join(text))
    if json:
        common.print_json(asdict(result))
        return
    print()
    if sys.stderr.isatty():
        print(summary(result), file=sys.stderr)


def summary(result: Generation) -> str:
    """One line on how it went."""
    seed = "" if result.seed is None else f", seed {result.seed}"
    return (
        f"[{result.prompt_tokens} + {len(result.ids)} tokens, first after {result.first_token_seconds:.2f} s, "
        f"then {result.tokens_per_second:.0f} per second, {result.finish_reason}{seed}]"
    )
