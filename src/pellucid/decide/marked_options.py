"""The prompt of a model that scores each option at a mark before it, as in llama.cpp's type "laya".

    [cls] question [sep] [mask] option [mask] option … [sep] state [sep]

The model is trained with a limited number of tokens before the state. Longer options and questions are cut as in the
training.

Source: ``fill_task_laya`` in llama.cpp's tools/server/server-decision.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.decide.answers import Scores
from pellucid.decide.prompts import DecisionPrompt, Reading
from pellucid.decide.questions import TYPES, Content, Question
from pellucid.decide.scored_options import (
    DecisionModel,
    ScoredOptions,
    ScoringModel,
    mark_scores,
    replaced,
)
from pellucid.errors import TemplateError
from pellucid.trace.edits import Edit

OPTION_TOKENS, LEAST_OPTION = 48, 4
"""Maximum number of tokens of an option's text; and the number of tokens that an option with its mark always has."""
QUESTION_TOKENS, LEAST_QUESTION = 16, 8
"""Number of tokens that options leave to the question; and the number of tokens that the question always has."""


class MarkedOptions(ScoredOptions):
    """The prompts and scores of the type "laya"."""

    explains = True

    def __init__(self, model: DecisionModel) -> None:
        """Find the tokens of the marks of options and of the separators.

        Raises:
            UnsupportedModel: the model does not score options at marks.
            FileFormatError: the file names no mask token or no separator.
        """
        super().__init__(model)
        model.needs(model.spec.decision is not None, "modern-bert with decision blocks")
        tokenizer, named = model.tokenizer, model.tokenizer.named_tokens
        self.mark = model.token("mask", tokenizer.mask_id)
        self.separator = model.token("seperator", tokenizer.vocabulary.ids.get(named.get("sep_token", "")))
        self.text: str = named["mask_token"]
        self.limit = model.format.max_head_tokens

    def printed(self, content: Content) -> Content:
        """A content with a space in place of the text of the mark, as in the model's training."""
        cleaned: Content = replaced(content, lambda text: text.replace(self.text, " "))
        return cleaned

    def prompt(self, state: Content, questions: Sequence[Question], number: int) -> DecisionPrompt:
        """The prompt of the question ``number``. Contents have a space in place of the text of the mark."""
        question = questions[number]
        values = self.model.variables(state, questions, number)
        values = replaced(values, lambda text: text.replace(self.text, " "))
        (ids,), _ = self.model.tokenizer.encode_template(self.model.template, values)
        ids, marks = self.cut(ids, len(question.options))
        reading = Reading(number, marks[0], marks=tuple(marks))
        return DecisionPrompt(ids, (reading,), TYPES.index(question.type))

    def scores(
        self, model: ScoringModel, prompts: Sequence[DecisionPrompt], edits: Sequence[Edit] | None
    ) -> list[list[Scores]]:
        """The scores at the marks."""
        return mark_scores(model, prompts, edits)

    def cut(self, ids: Sequence[int], count: int) -> tuple[list[int], list[int]]:
        """The tokens of a prompt with ``count`` options, cut as in the model's training, and the marks' positions.

        Raises:
            TemplateError: the template wrote another layout.
        """
        marks = [at for at, token in enumerate(ids) if token == self.mark]
        end = (
            next((at for at in range(marks[-1], len(ids)) if ids[at] == self.separator), -1) if marks else -1
        )
        laid_out = len(marks) == count and marks[0] >= 2 and ids[marks[0] - 1] == self.separator
        if not laid_out or not 0 <= end < len(ids) - 1 or ids[-1] != self.separator:
            raise TemplateError(
                f"the decision template marks {len(marks):,} of {count:,} options: it must write the question, a "
                "separator, each option after a mask token, a separator, the state and a separator"
            )
        options = [list(ids[start:stop]) for start, stop in zip(marks, (*marks[1:], end))]
        options = [one[: OPTION_TOKENS + 1] for one in options]
        if sum(map(len, options)) + QUESTION_TOKENS > self.limit:
            most = max(LEAST_OPTION, max(0, self.limit - QUESTION_TOKENS) // count)
            options = [one[:most] for one in options]
        question = max(LEAST_QUESTION, self.limit - sum(map(len, options)))
        cut = [*ids[: min(marks[0] - 1, 1 + question)], self.separator]
        places = []
        for option in options:
            places.append(len(cut))
            cut += option
        return [*cut, *ids[end:]], places
