"""pellucid answer MODEL QUESTION TEXT: the part of a text that answers a question."""

from __future__ import annotations

from typing import Annotated, Any

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.loading import EncoderLoading, check_task, load


def command(
    model: common.Model,
    question: Annotated[str, common.argument("QUESTION", "The question.")],
    text: Annotated[str, common.argument("TEXT", "The text, or @FILE for the text of a file.")],
    top: Annotated[Any, common.count("Number of answers to show.")] = 1,
    longest: Annotated[Any, common.count("Maximum number of tokens of an answer.")] = 15,
    unanswerable: Annotated[
        bool, common.flag("--unanswerable", "The text may have no answer, which then is an answer too.")
    ] = False,
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


COMMAND = Command("answer", command)
