"""A model's decider: it turns a state and questions into prompts, and the scores of the labels into answers.

Each question is a prompt of its own, so that the answer to a question does not depend on the other questions (unless
the model's template lists all questions). The prompts share the state's tokens, which the engine reads once
(``engine/tasks/label_scores.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

from pellucid.decide.answers import Decisions, Scores, decision
from pellucid.decide.decision_format import DecisionFormat, decision_format
from pellucid.decide.labels import CHAT, Label, LabelScheme, fixed_labels, scheme_of, worded_labels
from pellucid.decide.prompts import DecisionPrompt, message, variables
from pellucid.decide.questions import Content, Question
from pellucid.engine.inputs import Inputs
from pellucid.errors import InvalidRequest, UnsupportedTask
from pellucid.errors.messages import shown
from pellucid.weights.checkpoint import Checkpoint


class Decider:
    """Makes the prompts of decisions for a model, and reads its scores.

    A decision model's file states its ``format``; for other models it is None. They answer by the letters of the
    options if they have a chat template.

    Raises:
        UnsupportedTask: the model generates no text, or has neither a decision format nor a chat template.
        UnsupportedModel: the file's type of decision model is not implemented.
        FileFormatError: the file's decision format is damaged.
    """

    def __init__(self, checkpoint: Checkpoint, inputs: Inputs) -> None:
        self.format: DecisionFormat | None = decision_format(checkpoint)
        self._inputs, self._tokenizer = inputs, inputs.tokenizer
        name = shown(inputs.spec.name)
        self.scheme: LabelScheme = CHAT
        if self.format is not None:
            self.scheme = scheme_of(self.format.type, checkpoint.path.name)
        if not inputs.spec.head:
            raise UnsupportedTask(f"{name} has no head that scores options: load a decision model")
        if self.format is None and self._tokenizer.chat_template is None:
            raise UnsupportedTask(
                f"{name} is no decision model, and has no chat template to ask it with: load a decision model, or an "
                "instruct model such as smollm2"
            )

    @cached_property
    def _fixed_labels(self) -> list[Label]:
        """Labels of the tokens that the model has."""
        found = fixed_labels(self.scheme, self._tokenizer)
        return [label for label in found if max(label.tokens) < self._inputs.vocabulary]

    def prompts(self, state: Content, questions: Sequence[Question]) -> list[DecisionPrompt]:
        """The prompts of questions about a state, in the order of the questions.

        Raises:
            InvalidRequest: a question has more options than the model has labels.
            ContextOverflow: a prompt does not fit into the context.
            TemplateError: the template fails.
        """
        labels = [self._labels(question) for question in questions]
        return [
            DecisionPrompt(
                number, self._ids(state, questions, labels, number, reverse), labels[number], reverse
            )
            for number, question in enumerate(questions)
            for reverse in (False, True)[: self.scheme.orders(question)]
        ]

    def decisions(
        self, questions: Sequence[Question], prompts: Sequence[DecisionPrompt], scores: Sequence[Scores]
    ) -> Decisions:
        """The answers to the questions, from the scores of each prompt's labels."""
        answers, scheme = {}, self.scheme
        for number, group in groupby(zip(prompts, scores), key=lambda pair: pair[0].number):
            question, own = questions[number], list(group)
            keys = [one.key for one in scheme.options(question)]
            reversals = [prompt.reverse for prompt, _ in own]
            temperature = self.format.temperature(question, scheme.bands) if self.format else None
            answers[question.id] = decision(
                question, keys, [one for _, one in own], reversals, temperature, scheme.rated
            )
        return Decisions(answers, sum(len(prompt.ids) for prompt in prompts))

    def _labels(self, question: Question) -> tuple[Label, ...]:
        """The labels of a question's scores, in the order of ``LabelScheme.options``."""
        count = self.scheme.outputs(question)
        if self.scheme.codes is not None:
            labels = self._fixed_labels
        else:
            options = self.scheme.options(question)
            ordered = Question(question.id, question.type, question.instructions, options)
            labels = worded_labels(self._tokenizer, ordered)
        if len(labels) < count:
            raise InvalidRequest(
                f"questions.{shown(question.id)} has {len(question.options):,} options and needs {count:,} labels of a "
                f"single token, but this model has {len(labels):,}: offer fewer options"
            )
        return tuple(labels[:count])

    def _ids(
        self,
        state: Content,
        questions: Sequence[Question],
        labels: Sequence[Sequence[Label]],
        number: int,
        reverse: bool,
    ) -> list[int]:
        prompt: Any
        if self.format is None:
            text = message(self.scheme, state, questions[number], labels[number], reverse)
            prompt = self._tokenizer.encode_chat([{"role": "user", "content": text}], enable_thinking=False)
        else:
            values = variables(self.scheme, state, questions, labels, number, reverse)
            prompt = self._tokenizer.encode_template(self.format.template, values)
        return self._inputs.prompt(prompt)
