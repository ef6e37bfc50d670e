"""The prompt of llama.cpp's type "lfm2-d1-omni" (d1-omni), for a state that is text.

    [cls] state question ([mask] option)*, with control tokens between them

The template writes the prompt in pieces, which are tokenized one by one. The texts of options and of the question have
a limit, and the state gets the tokens that are left. The model also reads pictures and sounds, which are refused here.

Source: ``fill_task_d1omni`` in llama.cpp's tools/server/server-decision.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pellucid.decide.answers import Scores
from pellucid.decide.prompts import DecisionPrompt, Reading
from pellucid.decide.questions import TYPES, Content, Question
from pellucid.decide.scored_options import (
    DecisionModel,
    ScoredOptions,
    ScoringModel,
    mark_scores,
    replaced,
    without_special,
)
from pellucid.errors import InvalidRequest, TemplateError
from pellucid.errors.messages import shown
from pellucid.trace.edits import Edit

TOKENS = 16384
"""Maximum number of tokens of a prompt in the model's training."""
START = "<<d1omni:"
SEPARATOR, STATE, QUESTION, OPTION = (f"{START}{name}>>" for name in ("sep", "state", "question", "option"))
"""Marks: between the pieces of the prompt, and at the start of the pieces whose length is limited."""
GIVEN = {"sep": SEPARATOR, "mark_state": STATE, "mark_question": QUESTION, "mark_option": OPTION}


class OmniOptions(ScoredOptions):
    """The prompts and scores of the type "lfm2-d1-omni"."""

    explains = True

    def __init__(self, model: DecisionModel) -> None:
        """Find the token of the marks of options.

        Raises:
            UnsupportedModel: the model does not score options at marks.
            FileFormatError: the file names no mask token.
        """
        super().__init__(model)
        model.needs(model.spec.decision is not None, "lfm2 with decision blocks")
        self.mark = model.token("mask", model.tokenizer.mask_id)

    def printed(self, content: Any) -> Any:
        """A content without control tokens and the marks of pieces."""
        return replaced(without_special(content), lambda text: text.replace(START, "<<d1omni "))

    def prompt(self, state: Content, questions: Sequence[Question], number: int) -> DecisionPrompt:
        """The prompt of the question ``number``.

        Raises:
            InvalidRequest: the options do not fit into ``TOKENS``.
            TemplateError: the template fails, or writes another layout.
        """
        question, count = questions[number], len(questions[number].options)
        values = self.printed(self.model.variables(state, questions, number))
        parts, marks = self.model.tokenizer.encode_template(
            self.model.template, {**values, "audio": False}, tuple(GIVEN.values()), GIVEN
        )
        budget = max(96, min(24 * count + 32, TOKENS // 2))
        limits = {QUESTION: max(16, budget), OPTION: max(2, (budget - 3 * count) // count)}
        before, middle, after = list[int](), None, list[int]()
        for kind, ids in pieces(parts, marks, SEPARATOR):
            if kind == STATE and middle is None:
                middle = ids
            elif kind == STATE:
                raise TemplateError("the decision template writes more than one state")
            else:
                (before if middle is None else after).extend(ids[: limits.get(kind, len(ids))])
        if middle is None or parts[0]:
            raise TemplateError("the decision template must write the state as a piece, after a separator")
        room = max(0, TOKENS - len(before) - len(after))
        ids = [*before, *middle[:room], *after][:TOKENS]
        positions = tuple(at for at, token in enumerate(ids) if token == self.mark)
        if len(positions) != count:
            raise InvalidRequest(
                f"questions.{shown(question.id)} has {count:,} options, of which {len(positions):,} fit into the "
                f"{TOKENS:,} tokens that the model reads: offer fewer options"
            )
        return DecisionPrompt(
            ids, (Reading(number, positions[0], marks=positions),), TYPES.index(question.type)
        )

    def scores(
        self, model: ScoringModel, prompts: Sequence[DecisionPrompt], edits: Sequence[Edit] | None
    ) -> list[list[Scores]]:
        """The scores at the marks."""
        return mark_scores(model, prompts, edits)


def pieces(parts: Sequence[list[int]], marks: Sequence[str], separator: str) -> list[tuple[str, list[int]]]:
    """The pieces of a template's text after the first: the mark at the start of each ("": none), and its tokens.

    ``marks`` are between the ``parts``.

    Raises:
        TemplateError: a mark is not at the start of a piece.
    """
    found = list[tuple[str, list[int]]]()
    for mark, ids in zip(marks, parts[1:]):
        if mark == separator:
            found.append(("", ids))
        elif found and found[-1] == ("", []):
            found[-1] = (mark, ids)
        else:
            raise TemplateError(
                f"the decision template writes {shown(mark)} inside a piece, not at its start"
            )
    return found
