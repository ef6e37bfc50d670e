"""pellucid fill MODEL TEXT: the most likely tokens at the masks of a text."""

from __future__ import annotations

from typing import Annotated, Any

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.loading import EncoderLoading, check_task, load


def command(
    model: common.Model,
    text: Annotated[
        str, common.argument("TEXT", "A text with masks: 'Paris is the [MASK] of France.', or @FILE")
    ],
    top: Annotated[Any, common.count("Number of tokens to show for each mask.")] = 5,
    *,
    loading: EncoderLoading,
    json: common.Json = False,
) -> None:
    """Show the most likely tokens at the masks of a text, from a masked language model."""
    given = common.text_or_file(text)
    llm = load(model, loading, lambda inputs: check_task(inputs, "fill"))
    masks = llm.fill(given, top)
    if json:
        common.print_json({"text": given, "masks": [common.fields_of(tokens) for tokens in masks]})
        return
    table = common.table("mask", "token", "probability", "text", right=("mask", "probability"))
    for number, tokens in enumerate(masks, 1):
        for token in tokens:
            probability = f"{token.probability:.4f}"
            table.add_row(str(number), repr(token.text), probability, common.beginning(token.filled))
    common.show(table)


COMMAND = Command("fill", command)
