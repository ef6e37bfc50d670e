"""pellucid rerank MODEL QUERY TEXT...: texts in the order of their relevance to a query."""

from __future__ import annotations

from typing import Annotated, Any

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.loading import EncoderLoading, load


def command(
    model: common.Model,
    query: Annotated[str, common.argument("QUERY", "The question or the words to search for.")],
    texts: Annotated[
        list[str], common.argument("TEXT...", "Texts, or @FILE for a file with a text in each line.")
    ],
    top: Annotated[Any, common.count("Number of texts to show. Default: all.")] = None,
    truncate: Annotated[
        bool, common.flag("--truncate", "Cut texts that are longer than the context, instead of failing.")
    ] = False,
    *,
    loading: EncoderLoading,
    json: common.Json = False,
) -> None:
    """Sort texts by their relevance to a query. A cross-encoder scores pairs; a sentence encoder compares vectors."""
    from pellucid.util.checks import whole

    documents = list(common.texts_or_lines(texts))
    count = None if top is None else whole("top", top, 1, len(documents), "the number of texts")
    llm = load(model, loading, lambda inputs: inputs.check_task("classify", "embed", "tokens", "sparse"))
    ranked = llm.rerank(query, documents, top=count, truncate=truncate)
    if json:
        common.print_json({"query": query, "ranked": common.fields_of(ranked)})
        return
    table = common.table("score", "text", "", right=("score", ""))
    for document in ranked:
        table.add_row(f"{document.score:.4f}", common.beginning(document.text), str(document.index + 1))
    common.show(table)


COMMAND = Command("rerank", command)
