"""pellucid answer, classify, fill, rerank, tag: the tasks of encoders."""

from __future__ import annotations

from typing import Annotated, Any

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.loading import EncoderLoading, check_task, load
from pellucid.util.checks import whole

# pellucid answer MODEL QUESTION TEXT: the part of a text that answers a question.


def answer_command(
    model: common.Model,
    question: str = common.argument("QUESTION", "The question.", ...),
    text: str = common.argument("TEXT", "The text, or @FILE for the text of a file.", ...),
    top: Any = common.count("Number of answers to show.", 1),
    longest: Any = common.count("Maximum number of tokens of an answer.", 15),
    unanswerable: bool = common.flag("--unanswerable", "The text may have no answer, which then is an answer too."),
    *,
    loading: EncoderLoading,
    json: common.Json = False,
) -> None:
    """Find the part of a text that answers a question, with a model that has a question answering head."""
    given = common.text_or_file(text)
    llm = load(model, loading, lambda inputs: check_task(inputs, "answer"))
    answers = llm.answer(question, given, top=top, longest=longest, unanswerable=unanswerable)
    if json:
        common.print_json({"question": question, "answers": common.fields_of(answers)})
        return
    table = common.table("score", "characters", "answer", right=("score", "characters"))
    for one in answers:
        place = f"{one.start}:{one.end}" if one.end else ""
        table.add_row(f"{one.score:.4f}", place, common.beginning(one.text) if one.end else "no answer")
    common.show(table)


ANSWER = Command("answer", answer_command)


# pellucid classify MODEL TEXT...: the scores of a classifier's labels.


def classify_command(
    model: common.Model,
    texts: common.Texts,
    top: Any = common.count("Number of labels to show for each text.", 5),
    truncate: common.Truncate = False,
    *,
    loading: EncoderLoading,
    json: common.Json = False,
) -> None:
    """Score the labels of texts with a model that has a classification head."""
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


CLASSIFY = Command("classify", classify_command)


# pellucid fill MODEL TEXT: the most likely tokens at the masks of a text.


def fill_command(
    model: common.Model,
    text: str = common.argument("TEXT", "A text with masks: 'Paris is the [MASK] of France.', or @FILE", ...),
    top: Any = common.count("Number of tokens to show for each mask.", 5),
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


FILL = Command("fill", fill_command)


# pellucid rerank MODEL QUERY TEXT...: texts in the order of their relevance to a query.


def rerank_command(
    model: common.Model,
    query: Annotated[str, common.argument("QUERY", "The question or the words to search for.", ...)],
    texts: common.Texts,
    top: Any = common.count("Number of texts to show. Default: all."),
    truncate: common.Truncate = False,
    *,
    loading: EncoderLoading,
    json: common.Json = False,
) -> None:
    """Sort texts by their relevance to a query. A cross-encoder scores pairs; a sentence encoder compares vectors."""
    from pellucid.encoders.ranking import PAIR_TASKS

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


RERANK = Command("rerank", rerank_command)


# pellucid tag MODEL TEXT: the labels of a text's tokens, such as named entities.


def tag_command(
    model: common.Model,
    text: str = common.argument("TEXT", "The text, or @FILE for the text of a file.", ...),
    grouping: str = common.text(
        "GROUPING",
        "none: a row for each token; simple: neighbouring tokens of an entity together; first, average, max: the "
        "tokens of a word have the label of the first, of the mean, or of the most certain token.",
        "simple",
    ),
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


TAG = Command("tag", tag_command)
