"""The prompt and the scores of llama.cpp's type "clef": one prompt for all questions of a request.

The template writes the prompt in pieces, which are tokenized one by one. The head reads the tokens of each question's
instructions and of each option (``joint_scores.py``). The answer to a question depends on the other questions, as in
the model's training.

Source: ``fill_task_joint`` in llama.cpp's tools/server/server-decision.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from pellucid.decide.answers import Scores
from pellucid.decide.joint_scores import JointScorer
from pellucid.decide.omni_options import pieces
from pellucid.decide.prompts import DecisionPrompt, QuestionSpans, Reading, with_sorted_keys
from pellucid.decide.questions import Content, Question, QuestionType
from pellucid.decide.scored_options import DecisionModel, ScoredOptions, ScoringModel, replaced
from pellucid.engine.encoder_input import EncoderInput
from pellucid.errors import InvalidRequest, TemplateError
from pellucid.errors.messages import shown
from pellucid.model.joint_head import CLEF
from pellucid.trace.edits import Edit

START = "<<clef:"
SEPARATOR, QUESTION, OPTION = (f"{START}{name}>>" for name in ("sep", "question", "option"))
"""Marks: between the pieces of the prompt, and at the start of a question's instructions and of an option."""
ORDER: Sequence[QuestionType] = ("noul", "choice", "score")
"""The types of questions in the order of their vectors."""
GIVEN = {"sep": SEPARATOR, "mark_question": QUESTION, "mark_option": OPTION}


class JointOptions(ScoredOptions):
    """The prompts and scores of the type "clef"."""

    def __init__(self, model: DecisionModel) -> None:
        """Check that the model has a joint head.

        Raises:
            UnsupportedModel: it has none.
        """
        super().__init__(model)
        metadata = model.checkpoint.metadata
        kind = metadata.get(f"{metadata.get('general.architecture')}.decision.type")
        model.needs(kind == CLEF and model.spec.task == "decide", "language models with a joint head")

    def prompts(self, state: Content, questions: Sequence[Question]) -> list[DecisionPrompt]:
        """The only prompt of questions about a state."""
        return [self.prompt(state, questions, 0)]

    def prompt(self, state: Content, questions: Sequence[Question], number: int) -> DecisionPrompt:
        """The prompt of all questions."""
        asked = [self.model.variables(state, questions, at) for at in range(len(questions))]
        names = ("id", "type", "instructions", "options")
        values = with_sorted_keys(
            {
                "state": state,
                "questions": [{name: own[name] for name in names} for own in asked],
                "images": [],
            }
        )
        values = replaced(values, lambda text: text.replace(START, "<<clef "))
        parts, marks = self.model.tokenizer.encode_template(
            self.model.template, values, tuple(GIVEN.values()), GIVEN
        )
        ids, spans = list(parts[0]), list[list[tuple[int, int]]]()
        for kind, piece in pieces(parts, marks, SEPARATOR):
            start = len(ids)
            ids += piece
            if not kind:
                continue
            if not piece:
                raise InvalidRequest("the instructions and the options of a question must not be empty")
            if kind == QUESTION:
                spans.append([])
            if not spans:
                raise TemplateError("the decision template writes an option before the first question")
            spans[-1].append((start, len(ids)))
        if [len(own) - 1 for own in spans] != [len(one.options) for one in questions]:
            raise TemplateError(
                f"the decision template marks {len(spans):,} questions of {len(questions):,}, or not all options of "
                f"a question: it must write {shown(GIVEN['mark_question'])} and {shown(GIVEN['mark_option'])}"
            )
        readings = (
            Reading(at, own[0][0], spans=QuestionSpans(ORDER.index(one.type), own[0], tuple(own[1:])))
            for at, (one, own) in enumerate(zip(questions, spans))
        )
        return DecisionPrompt(ids, tuple(readings))

    def scores(
        self, model: ScoringModel, prompts: Sequence[DecisionPrompt], edits: Sequence[Edit] | None
    ) -> list[list[Scores]]:
        """The scores of the head."""
        rows = model.encode([EncoderInput(prompt.ids) for prompt in prompts], edits)
        return [
            self._scorer.scores(own, prompt.ids, [one.spans for one in prompt.readings if one.spans])
            for own, prompt in zip(rows, prompts)
        ]

    @cached_property
    def _scorer(self) -> JointScorer:
        """The head, whose tensors are read at the first request."""
        return JointScorer(self.model.checkpoint)
