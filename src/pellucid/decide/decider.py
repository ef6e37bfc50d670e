"""A model's decider: it turns a state and questions into prompts, and the scores of the labels into answers.

Each question is a prompt of its own, so that the answer to a question does not depend on the other questions (unless
the model's template or head reads all questions). The prompts share the state's tokens, which the engine reads once
(``engine/tasks/scoring.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import Any

from msgspec.structs import replace

from pellucid.decide.labels import (
    MARKED,
    DecisionFormat,
    Label,
    LabelScheme,
    coded_labels,
    column_labels,
    decision_format,
    scheme_of,
    worded_labels,
)
from pellucid.decide.option_layouts import LAYOUTS
from pellucid.decide.prompts import (
    MARK,
    SPLIT,
    DecisionModel,
    DecisionPrompt,
    Reading,
    ScoredOptions,
    marked_question,
    message,
    variables,
    with_sorted_keys,
)
from pellucid.decide.questions import Content, Decisions, Question, Scores, decision
from pellucid.engine.inputs import Inputs
from pellucid.errors import InvalidRequest, TemplateError, UnsupportedTask
from pellucid.errors.messages import shown
from pellucid.weights.checkpoint import Checkpoint

Labels = Sequence[tuple[Label, ...]]


class Decider:
    """Makes the prompts of decisions for a model, and reads its scores.

    The files of a decision model state its ``format``; for other models it is None. They answer by the letters of the
    options if they have a chat template.

    Raises:
        UnsupportedTask: the model generates no text, or has neither a decision format nor a chat template.
        UnsupportedModel: the file's type of decision model is not implemented.
        FileFormatError: the file's decision format is damaged.
    """

    def __init__(self, checkpoint: Checkpoint, inputs: Inputs) -> None:
        self.format: DecisionFormat | None = decision_format(checkpoint)
        self.scheme: LabelScheme = scheme_of(self.format, checkpoint.path.name)
        self._inputs, self._tokenizer = inputs, inputs.tokenizer
        self._template = None if self.format is None else self.format.template
        vocabulary = inputs.vocabulary
        self._coded = cache(lambda kind: coded_labels(self.scheme, self._tokenizer, kind, vocabulary))
        name = shown(inputs.spec.name)
        if inputs.spec.task not in ("generate", "decide") or inputs.spec.encoder:
            raise UnsupportedTask(f"{name} has no head that scores options: load a decision model")
        if self._template is None and self._tokenizer.chat_template is None:
            raise UnsupportedTask(
                f"{name} is no decision model, and has no chat template to ask it with: load a decision model, or an "
                "instruct model such as smollm2"
            )
        self.options: ScoredOptions | None = None
        """Prompts and scores of a model that scores options themselves; None: it scores their labels."""
        if self.scheme.unlabelled and self.format is not None and self._template is not None:
            parts = (checkpoint, inputs.spec, self._tokenizer, self.format, self.scheme, self._template)
            self.options = LAYOUTS[self.format.type](DecisionModel(*parts))

    def printed(self, content: Content) -> Content:
        """A state or the instructions of a question as the template gets them."""
        if self.options is not None:
            content = self.options.printed(content)
        return with_sorted_keys(content) if self.scheme.sorted_keys else content

    def check_explains(self) -> None:
        """Refuse to explain the decisions of a model whose scores cannot be divided among words.

        Raises:
            InvalidRequest: the model has such scores.
        """
        if self.options is not None and not self.options.explains:
            raise InvalidRequest(
                f"{shown(self._inputs.spec.name)} scores options by products of vectors, which cannot be divided "
                "among words: leave explain out"
            )

    def prompts(self, state: Content, questions: Sequence[Question]) -> list[DecisionPrompt]:
        """The prompts of questions about a state, in the order of the questions.

        Raises:
            InvalidRequest: a question has more options than the model has labels.
            ContextOverflow: a prompt does not fit into the context.
            TemplateError: the template fails.
        """
        if self.options is not None:
            prompts, task = self.options.prompts(state, questions), self._inputs.spec.task
            return [replace(one, ids=self._inputs.prompt(one.ids, task=task)) for one in prompts]
        labels = [self._labels(question) for question in questions]
        if self.format is not None and self.format.type == MARKED and self._template is not None:
            return self._marked_prompts(self._template, state, questions, labels)
        return [
            self._prompt(state, questions, labels, number, reverse)
            for number, question in enumerate(questions)
            for reverse in (False, True)[: self.scheme.orders(question)]
        ]

    def decisions(
        self, questions: Sequence[Question], prompts: Sequence[DecisionPrompt], scores: Sequence[Sequence[Scores]]
    ) -> Decisions:
        """The answers to the questions, from the scores of the labels of each reading of each prompt."""
        read = [
            (reading, own) for prompt, found in zip(prompts, scores) for reading, own in zip(prompt.readings, found)
        ]
        answers, scheme = {}, self.scheme
        for number, group in groupby(read, key=lambda pair: pair[0].number):
            question, pairs = questions[number], list(group)
            keys = [one.key for one in scheme.options(question)]
            temperature = self.format.temperature(question, scheme.bands) if self.format else None
            reversals = [reading.reverse for reading, _ in pairs]
            answers[question.id] = decision(
                question, keys, [own for _, own in pairs], reversals, temperature, scheme.rated
            )
        return Decisions(answers, sum(len(prompt.ids) for prompt in prompts))

    def _labels(self, question: Question) -> tuple[Label, ...]:
        count = self.scheme.outputs(question)
        if self.format is not None and self.format.columns:
            labels = column_labels(self.scheme, question.type, self.format.columns, self._inputs.spec.output_width)
        elif self.scheme.codes is None:
            labels = worded_labels(self.scheme, self._tokenizer, question)
        else:
            labels = self._coded(question.type)
        if len(labels) < count:
            raise InvalidRequest(
                f"questions.{shown(question.id)} has {len(question.options):,} options and needs {count:,} labels of a "
                f"single token, but this model has {len(labels):,}: offer fewer options"
            )
        return tuple(labels[:count])

    def _prompt(
        self, state: Content, questions: Sequence[Question], labels: Labels, number: int, reverse: bool
    ) -> DecisionPrompt:
        """The prompt of one question, which is read at its last token."""
        if self._template is None:
            text = message(self.scheme, state, questions[number], labels[number])
            ids = self._tokenizer.encode_chat([{"role": "user", "content": text}], enable_thinking=False)
        else:
            values = variables(self.scheme, state, questions, labels, number, reverse)
            (ids,), _ = self._tokenizer.encode_template(self._template, values)
        ids = self._inputs.prompt(ids, task=self._inputs.spec.task)
        return DecisionPrompt(ids, (Reading(number, len(ids) - 1, labels[number], reverse),))

    def _marked_prompts(
        self, template: str, state: Content, questions: Sequence[Question], labels: Labels
    ) -> list[DecisionPrompt]:
        """A prompt for each question, or one for all if the template reads ``questions``."""

        def encoded(number: int, asked: Sequence[Any]) -> tuple[list[list[int]], list[str]]:
            values = {"state": state, "question": every[number], "questions": asked}
            return self._tokenizer.encode_template(template, values, (MARK, SPLIT))

        every = [marked_question(self.scheme, one, own) for one, own in zip(questions, labels)]
        if "questions" in template:  # else the template cannot read them
            together = encoded(0, every)
            if together != encoded(0, []):
                return [self._marked(*together, labels, range(len(questions)))]
        alone = (encoded(number, [every[number]]) for number in range(len(questions)))
        return [self._marked(*one, labels, [number]) for number, one in enumerate(alone)]

    def _marked(
        self, parts: Sequence[list[int]], marks: Sequence[str], labels: Labels, numbers: Sequence[int]
    ) -> DecisionPrompt:
        ids, positions = list[int](), list[int]()
        for part, mark in zip(parts, (*marks, "")):
            ids += part
            positions += [len(ids) - 1] if mark == MARK else []
        positions = positions or [len(ids) - 1]
        if len(positions) != len(numbers) or positions[0] < 0:
            raise TemplateError(
                f"the decision template marks {len(positions):,} positions for {len(numbers):,} questions: it is made "
                "for another head"
            )
        readings = tuple(Reading(number, at, labels[number]) for number, at in zip(numbers, positions))
        return DecisionPrompt(self._inputs.prompt(ids, task=self._inputs.spec.task), readings)
