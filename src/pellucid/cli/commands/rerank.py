"""pellucid rerank MODEL QUERY TEXT...: texts in the order of their relevance to a query."""

from __future__ import annotations

from typing import Annotated, Any

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.loading import EncoderLoading, check_task, load


def command(
    model: common.Model,
    query: Annotated[str, common.argument("QUERY", "The question or the words to search for.")],
    texts: common.Texts,
    top: Annotated[Any, common.count("Number of texts to show. Default: all.")] = None,
    truncate: common.Truncate = False,
    *,
    loading: EncoderLoading,
    json: common.Json = False,
) -> None:
    """Sort texts by their relevance to a query. A cross-encoder scores pairs; a sentence encoder compares vectors."""
    from pellucid.encoders.ranking import PAIR_TASKS
    from pellucid.util.checks import whole

    documents = list(common.texts_or_lines(texts))
    count = None if top is None else whole("top", top, 1, len(documents), "the number of texts")
    llm = load(model, loading, lambda inputs: check_task(inputs, *PAIR_TASKS))
    ranked = llm.rerank(query, documents, top=count, truncate=truncate)
    if json:
        common.print_json({"query": query, "ranked": common.fields_of(ranked)})
        return
    table = common.table("score", "text", "", right=("score", ""))
    for document in ranked:
        table.add_row(f"{document.score:.4f}", common.beginning(document.text), str(document.index + 1))
    common.show(table)


COMMAND = Command("rerank", command)
