"""State and question → the text that the model reads, with labels or with scored options."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.decide.labels import LETTERS, DecisionFormat, Label, LabelScheme
from pellucid.decide.questions import Content, Question, Scores
from pellucid.engine.encoder_inputs import EncoderInput
from pellucid.errors import FileFormatError, UnsupportedModel, shown
from pellucid.model.spec import ModelSpec
from pellucid.tokenize import Tokenizer
from pellucid.trace.edits import Edit
from pellucid.weights.checkpoint import Checkpoint

# State and question → the text that the model reads, and the positions where it answers with a label.
#
# A decision model's files have the template of its prompts. llama.cpp's templates have the variables ``state``, ``id``,
# ``type``, ``instructions``, ``options`` with ``key``, ``description`` and ``label``, ``images``, and ``questions`` if
# the prompt lists all questions. The templates of transformers have ``state``, and ``question`` or ``questions``, and
# mark each position that is read with ``<|mark|>``. Without a template, a message asks an instruct model.
#
# A control token in a user's text stays text.
#
# Sources: ``server_decision_context::render`` and ``fill_task`` in llama.cpp's tools/server/server-decision.cpp;
# ``transformers.decision.template_utils``, version 5.24 (``DECISION_PROMPT``, ``prepare_inputs``, ``read_marks``).

MARK, SPLIT = "<|mark|>", "<|split|>"
"""Marks of transformers' templates: after a position that is read, and where the text is split for the tokenizer."""


class QuestionSpans(Struct, frozen=True):
    """The positions of a question in a joint prompt: of its ``instructions`` and of each option.

    A span is its first position and the position after its last. ``type`` is the number of the question's type in the
    head (``joint_scores.py``).
    """

    type: int
    instructions: tuple[int, int]
    options: tuple[tuple[int, int], ...]


class Reading(Struct, frozen=True):
    """The place of an answer: the logits after the token ``position`` score the ``labels`` of the question ``number``.

    With ``reverse``, the labels belong to the options in reverse order. Models that score the options themselves have
    no labels (``option_layouts.py``). They have the positions of the ``marks`` of the options, or the ``spans`` of the
    question.
    """

    number: int
    position: int
    labels: tuple[Label, ...] = ()
    reverse: bool = False
    marks: tuple[int, ...] = ()
    spans: QuestionSpans | None = None


class DecisionPrompt(Struct, frozen=True):
    """A prompt: its token ids, and its readings, in the order of their positions.

    ``token_type`` is the type of all tokens, for a model whose prompts have the type of their question.
    """

    ids: list[int]
    readings: tuple[Reading, ...]
    token_type: int = 0


def variables(
    scheme: LabelScheme,
    state: Content,
    questions: Sequence[Question],
    labels: Sequence[Sequence[Label]],
    number: int,
    reverse: bool,
) -> dict[str, Any]:
    """The variables of llama.cpp's template for the question ``number``; ``labels`` has the labels of each question."""

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


def _options(scheme: LabelScheme, question: Question, labels: Sequence[Label], reverse: bool) -> list[dict[str, Any]]:
    options = scheme.options(question)[::-1] if reverse else scheme.options(question)
    return [
        {"key": one.key, "description": one.description, **({"label": label.text} if scheme.printed else {})}
        for one, label in zip(options, labels)
    ]


def with_sorted_keys(value: Any) -> Any:
    """A value with the keys of all objects in order, as some models were trained."""
    if isinstance(value, dict):
        return {key: with_sorted_keys(value[key]) for key in sorted(value)}
    return [with_sorted_keys(one) for one in value] if isinstance(value, list) else value


def marked_question(scheme: LabelScheme, question: Question, labels: Sequence[Label]) -> dict[str, Any]:
    options = scheme.options(question)
    return {
        "name": question.id,
        "type": question.type,
        "instructions": question.instructions,
        "options": [one.key for one in options],
        "labels": [label.text for label in labels],
        "descriptions": [one.description for one in options],
    }


def message(scheme: LabelScheme, state: Content, question: Question, labels: Sequence[Label]) -> str:
    """The message that asks an instruct model. The state comes first, so that the questions share its tokens."""
    texts, lines = [label.text for label in labels], [_text(question.instructions)]
    for text, option in zip(texts, scheme.options(question)):
        about = _text(option.description)
        if question.type == "choice":
            lines.append(f"{text}. {option.key}: {about}" if about else f"{text}. {option.key}")
        elif question.type == "score":
            lines.append(f"{text}. {about}")
        elif about or texts != ["Yes", "No"]:
            lines.append(f"{text}: {about or option.key}")
    if question.type == "noul":
        task = f"Answer {texts[0]} or {texts[1]} only."
    else:
        kind = "letter" if texts == list(LETTERS[: len(texts)]) else "label"
        asked = "option" if question.type == "choice" else "level"
        task = f"Answer with the {kind} of the {asked} that fits best ({texts[0]} to {texts[-1]}) only."
    return f"{_text(state)}\n\n" + "\n".join([one for one in lines if one] + [task])


def _text(content: Content | None) -> str:
    if content is None:
        return ""
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


class DecisionModel(Struct, frozen=True):
    """The parts of a decision model that its prompts depend on. ``template`` is the Jinja source of the prompts."""

    checkpoint: Checkpoint
    spec: ModelSpec
    tokenizer: Tokenizer
    format: DecisionFormat
    scheme: LabelScheme
    template: str

    def needs(self, found: bool, part: str) -> None:
        if not found:
            raise UnsupportedModel(
                f"{shown(self.checkpoint.path.name)}: decision.type = {self.format.type} is implemented for {part}, "
                f"not for the family {self.spec.family}"
            )

    def token(self, name: str, found: int | None) -> int:
        if found is None:
            raise FileFormatError(
                self.checkpoint.path, f"tokenizer.ggml.{name}_token_id", "is missing: the prompt needs it"
            )
        return found

    def variables(self, state: Content, questions: Sequence[Question], number: int) -> dict[str, Any]:
        labels = [[Label("", ())] * len(one.options) for one in questions]
        return variables(self.scheme, state, questions, labels, number, False)


class ScoringModel(Protocol):
    """A loaded model that computes vectors; ``llm.LLM`` implements it."""

    def encode(
        self, texts: Sequence[EncoderInput], edits: Sequence[Edit] | None = None
    ) -> list[NDArray[np.float32]]: ...

    def rows_at(
        self, prompts: Sequence[list[int]], positions: Sequence[Sequence[int]], edits: Sequence[Edit] | None = None
    ) -> Iterator[tuple[int, int, NDArray[np.float32]]]: ...


class ScoredOptions(ABC):
    """The prompts of a model that scores options themselves, and their scores.

    A model that ``explains`` reads each option at a mark, and its scores can be divided among words.
    """

    explains = False

    def __init__(self, model: DecisionModel) -> None:
        self.model = model

    def prompts(self, state: Content, questions: Sequence[Question]) -> list[DecisionPrompt]:
        """The prompts of questions about a state: a prompt for each question.

        Raises:
            InvalidRequest: a prompt does not fit into the lengths that the model is trained with.
            TemplateError: the template fails, or writes another layout.
        """
        return [self.prompt(state, questions, number) for number in range(len(questions))]

    def printed(self, content: Content) -> Content:
        return content

    @abstractmethod
    def prompt(self, state: Content, questions: Sequence[Question], number: int) -> DecisionPrompt: ...

    def scores(
        self, model: ScoringModel, prompts: Sequence[DecisionPrompt], edits: Sequence[Edit] | None
    ) -> list[list[Scores]]:
        """The scores (n,) float32 of the n options of each reading of each prompt.

        By default those of an encoder with decision blocks: its only output, at the marks of the options.
        """
        marks = [prompt.readings[0].marks for prompt in prompts]
        texts = [EncoderInput(one.ids, [one.token_type] * len(one.ids), own[0]) for one, own in zip(prompts, marks)]
        rows = model.encode(texts, edits)
        return [[x[np.subtract(own, own[0]), 0]] for x, own in zip(rows, marks)]


SPECIAL = re.compile(r"<\|([A-Za-z0-9_]+)\|>")


def without_special(value: Any) -> Any:
    """A plain value whose texts and keys have "<¦name¦>" in place of "<|name|>", as some models were trained."""
    return replaced(value, lambda text: SPECIAL.sub("<¦\\1¦>", text), keys=True)


def replaced(value: Any, change: Any, keys: bool = False) -> Any:
    """A plain value with ``change`` applied to each text, with ``keys`` also to the keys of objects."""
    if isinstance(value, dict):
        return {change(key) if keys else key: replaced(one, change, keys) for key, one in value.items()}
    if isinstance(value, list):
        return [replaced(one, change, keys) for one in value]
    return change(value) if isinstance(value, str) else value
