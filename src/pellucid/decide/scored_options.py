"""Shared parts of the decision models that score options themselves (``option_layouts.py``)."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.decide.answers import Scores
from pellucid.decide.decision_format import DecisionFormat
from pellucid.decide.labels import LabelScheme, without_labels
from pellucid.decide.prompts import DecisionPrompt, variables
from pellucid.decide.questions import Content, Question
from pellucid.engine.encoder_input import EncoderInput
from pellucid.errors import FileFormatError, UnsupportedModel
from pellucid.errors.messages import shown
from pellucid.model.spec import ModelSpec
from pellucid.tokenize import Tokenizer
from pellucid.trace.edits import Edit
from pellucid.weights.checkpoint import Checkpoint


class DecisionModel(Struct, frozen=True):
    """The parts of a decision model that its prompts depend on. ``template`` is the Jinja source of the prompts."""

    checkpoint: Checkpoint
    spec: ModelSpec
    tokenizer: Tokenizer
    format: DecisionFormat
    scheme: LabelScheme
    template: str

    def needs(self, found: bool, part: str) -> None:
        """Raise UnsupportedModel if the model lacks the part that its type needs."""
        if not found:
            raise UnsupportedModel(
                f"{shown(self.checkpoint.path.name)}: decision.type = {self.format.type} is implemented for {part}, "
                f"not for the family {self.spec.family}"
            )

    def token(self, name: str, found: int | None) -> int:
        """The id of a token that the prompt needs.

        Raises:
            FileFormatError: the file names no such token.
        """
        if found is None:
            raise FileFormatError(
                self.checkpoint.path, f"tokenizer.ggml.{name}_token_id", "is missing: the prompt needs it"
            )
        return found

    def variables(self, state: Content, questions: Sequence[Question], number: int) -> dict[str, Any]:
        """The variables of the template for the question ``number``."""
        labels = [without_labels(one) for one in questions]
        return variables(self.scheme, state, questions, labels, number, False)


class ScoringModel(Protocol):
    """A loaded model that computes vectors; ``llm.LLM`` implements it."""

    def encode(
        self, texts: Sequence[EncoderInput], edits: Sequence[Edit] | None = None
    ) -> list[NDArray[np.float32]]: ...

    def rows_at(
        self,
        prompts: Sequence[list[int]],
        positions: Sequence[Sequence[int]],
        edits: Sequence[Edit] | None = None,
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
        """A state or the instructions of a question as the template gets them."""
        return content

    @abstractmethod
    def prompt(self, state: Content, questions: Sequence[Question], number: int) -> DecisionPrompt:
        """The prompt of the question ``number``."""

    @abstractmethod
    def scores(
        self, model: ScoringModel, prompts: Sequence[DecisionPrompt], edits: Sequence[Edit] | None
    ) -> list[list[Scores]]:
        """The scores (n,) float32 of the n options of each reading of each prompt."""


def mark_scores(
    model: ScoringModel, prompts: Sequence[DecisionPrompt], edits: Sequence[Edit] | None
) -> list[list[Scores]]:
    """The scores of an encoder with decision blocks: its only output, at the marks of the options."""
    marks = [prompt.readings[0].marks for prompt in prompts]
    texts = [
        EncoderInput(prompt.ids, [prompt.token_type] * len(prompt.ids), own[0])
        for prompt, own in zip(prompts, marks)
    ]
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
