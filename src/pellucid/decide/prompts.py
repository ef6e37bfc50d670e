"""State and question → the tokens that the model reads before it answers with a label.

A decision model's file has the template of its prompts. Its variables are those of llama.cpp: ``state``, ``id``,
``type``, ``instructions``, ``options`` with ``key``, ``description`` and ``label``, ``images``, and ``questions`` if
the prompt lists all questions. A control token in a user's text stays text.

Source: ``server_decision_context::render`` and ``fill_task`` in llama.cpp's tools/server/server-decision.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from pellucid.decide.labels import Label, LabelScheme
from pellucid.decide.questions import Content, Question, QuestionType

TASKS: Mapping[QuestionType, tuple[str, str]] = {
    "choice": ("Options", "Answer with the letter of one option only."),
    "score": ("Levels", "Answer with the number of one level only."),
    "noul": ("Answers", "Answer with yes or no only."),
}
"""The heading of the options in a message, and the task."""


class DecisionPrompt(Struct, frozen=True):
    """A prompt: its token ids, and the labels whose scores answer the question ``number``.

    With ``reverse``, the labels belong to the options in reverse order.
    """

    number: int
    ids: list[int]
    labels: tuple[Label, ...]
    reverse: bool = False


def variables(
    scheme: LabelScheme,
    state: Content,
    questions: Sequence[Question],
    labels: Sequence[Sequence[Label]],
    number: int,
    reverse: bool,
) -> dict[str, Any]:
    """The variables of the template for the question ``number``; ``labels`` has the labels of each question."""

    def fields(number: int, reverse: bool) -> dict[str, Any]:
        question = questions[number]
        options = _options(scheme, question, labels[number], reverse)
        return {
            "id": question.id, "type": question.type, "instructions": question.instructions, "options": options,
        }  # fmt: skip

    own: dict[str, Any] = {**fields(number, reverse), "state": state, "images": []}
    if scheme.lists_all:
        own["questions"] = [fields(at, False) for at in range(len(questions))]
    return with_sorted_keys(own) if scheme.sorted_keys else own


def _options(
    scheme: LabelScheme, question: Question, labels: Sequence[Label], reverse: bool
) -> list[dict[str, Any]]:
    options = scheme.options(question)[::-1] if reverse else scheme.options(question)
    return [
        {"key": one.key, "description": one.description, **({"label": label.text} if scheme.printed else {})}
        for one, label in zip(options, labels)
    ]


def with_sorted_keys(value: Any) -> Any:
    """A value with the keys of all objects in order, as the model of this scheme ("lev") was trained."""
    if isinstance(value, dict):
        return {key: with_sorted_keys(value[key]) for key in sorted(value)}
    return [with_sorted_keys(one) for one in value] if isinstance(value, list) else value


def message(
    scheme: LabelScheme, state: Content, question: Question, labels: Sequence[Label], reverse: bool
) -> str:
    """The message that asks an instruct model. The state comes first, so that the questions share its tokens."""
    heading, task = TASKS[question.type]
    names = {"false": "no", "true": "yes"} if question.type == "noul" else {}
    lines = []
    for option, label in zip(_options(scheme, question, labels, reverse), labels):
        name, description = names.get(option["key"], option["key"]), option["description"]
        if question.type == "noul" and description is not None:
            lines.append(f"{name}: {_text(description)}")
        elif question.type == "choice":
            lines.append(f"{label.text}. {name}" + ("" if description is None else f": {_text(description)}"))
        elif question.type == "score":
            lines.append(f"{label.text}. {_text(description)}")
    options = [f"# {heading}\n" + "\n".join(lines)] if lines else []
    parts = [f"# State\n{_text(state)}", f"# Question\n{_text(question.instructions)}", *options, task]
    return "\n\n".join(parts)


def _text(content: Content) -> str:
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
