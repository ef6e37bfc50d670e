"""pellucid classify MODEL TEXT...: the scores of a classifier's labels."""

from __future__ import annotations

from typing import Annotated, Any

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.loading import EncoderLoading, check_task, load


def command(
    model: common.Model,
    texts: common.Texts,
    top: Annotated[Any, common.count("Number of labels to show for each text.")] = 5,
    truncate: common.Truncate = False,
    *,
    loading: EncoderLoading,
    json: common.Json = False,
) -> None:
    """Score the labels of texts with a model that has a classification head."""
    from pellucid.util.checks import whole

    count = whole("top", top, 1, 1 << 20)
    given = list(common.texts_or_lines(texts))
    llm = load(model, loading, lambda inputs: check_task(inputs, "classify"))
    found = llm.classify(given, truncate=truncate)
    if json:
        documents = [{"text": text, "scores": dict(one.ranked)} for text, one in zip(given, found)]
        common.print_json({"texts": documents})
        return
    table = common.table("text", "label", "score", right=("score",))
    for text, one in zip(given, found):
        for number, (label, score) in enumerate(one.ranked[:count]):
            table.add_row("" if number else common.beginning(text), label, f"{score:.4f}")
    common.show(table)


COMMAND = Command("classify", command)
