"""pellucid tag MODEL TEXT: the labels of a text's tokens, such as named entities."""

from __future__ import annotations

from typing import Annotated

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.loading import EncoderLoading, check_task, load


def command(
    model: common.Model,
    text: Annotated[str, common.argument("TEXT", "The text, or @FILE for the text of a file.")],
    grouping: Annotated[
        str,
        common.text(
            "GROUPING",
            "none: a row for each token; simple: neighbouring tokens of an entity together; first, average, max: the "
            "tokens of a word have the label of the first, of the mean, or of the most certain token.",
        ),
    ] = "simple",
    *,
    loading: EncoderLoading,
    json: common.Json = False,
) -> None:
    """Label the tokens of a text, such as named entities, with a model that has a token classification head."""
    given = common.text_or_file(text)
    llm = load(model, loading, lambda inputs: check_task(inputs, "tag"))
    tags = llm.tag(given, grouping)  # type: ignore[arg-type]  # checked by tag
    if json:
        common.print_json({"text": given, "tags": common.fields_of(tags)})
        return
    table = common.table("label", "score", "characters", "text", right=("score", "characters"))
    for one in tags:
        table.add_row(one.label, f"{one.score:.4f}", f"{one.start}:{one.end}", common.beginning(one.text))
    common.show(table)


COMMAND = Command("tag", command)
