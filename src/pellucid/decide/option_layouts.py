"""The types of decision models that score options themselves, instead of labels.

The class of a type writes the prompts of questions, and reads the scores of their options. ``LAYOUTS`` lists them.

MarkedOptions    "laya": an encoder scores each option at a mark before it
OmniOptions      "lfm2-d1-omni": the same, with another prompt
PointedOptions   "kev": the query of the last token, times the key of each option's end
JointOptions     "clef": one prompt for all questions, and a head that scores all options together
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.decide.joint_scores import JointScorer, OmniOptions, pieces
from pellucid.decide.prompts import (
    DecisionModel,
    DecisionPrompt,
    QuestionSpans,
    Reading,
    ScoredOptions,
    ScoringModel,
    replaced,
    with_sorted_keys,
    without_special,
)
from pellucid.decide.questions import TYPES, Content, Question, QuestionType, Scores
from pellucid.engine.encoder_inputs import EncoderInput
from pellucid.errors import FileFormatError, InvalidRequest, TemplateError, shown
from pellucid.model.decision_heads import CLEF, KEV, LAYA, OMNI
from pellucid.model.outputs import Dense
from pellucid.trace.edits import Edit

# The prompt and the scores of llama.cpp's type "clef": one prompt for all questions of a request.
#
# The template writes the prompt in pieces, which are tokenized one by one. The head reads the tokens of each question's
# instructions and of each option (``joint_scores.py``). The answer to a question depends on the other questions, as in
# the model's training.
#
# Source: ``fill_task_joint`` in llama.cpp's tools/server/server-decision.cpp.

START = "<<clef:"
SEPARATOR, QUESTION, OPTION = (f"{START}{name}>>" for name in ("sep", "question", "option"))
"""Marks: between the pieces of the prompt, and at the start of a question's instructions and of an option."""
ORDER: Sequence[QuestionType] = ("noul", "choice", "score")
"""The types of questions in the order of their vectors."""
GIVEN = {"sep": SEPARATOR, "mark_question": QUESTION, "mark_option": OPTION}


class JointOptions(ScoredOptions):
    def __init__(self, model: DecisionModel) -> None:
        super().__init__(model)
        metadata = model.checkpoint.metadata
        kind = metadata.get(f"{metadata.get('general.architecture')}.decision.type")
        model.needs(kind == CLEF and model.spec.task == "decide", "language models with a joint head")

    def prompts(self, state: Content, questions: Sequence[Question]) -> list[DecisionPrompt]:
        return [self.prompt(state, questions, 0)]

    def prompt(self, state: Content, questions: Sequence[Question], number: int) -> DecisionPrompt:
        asked = [self.model.variables(state, questions, at) for at in range(len(questions))]
        names = ("id", "type", "instructions", "options")
        values = with_sorted_keys(
            {"state": state, "questions": [{name: own[name] for name in names} for own in asked], "images": []}
        )
        values = replaced(values, lambda text: text.replace(START, "<<clef "))
        parts, marks = self.model.tokenizer.encode_template(self.model.template, values, tuple(GIVEN.values()), GIVEN)
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
        rows = model.encode([EncoderInput(prompt.ids) for prompt in prompts], edits)
        return [
            self._scorer.scores(own, prompt.ids, [one.spans for one in prompt.readings if one.spans])
            for own, prompt in zip(rows, prompts)
        ]

    @cached_property
    def _scorer(self) -> JointScorer:
        return JointScorer(self.model.checkpoint)


# The prompt of a model that scores each option at a mark before it, as in llama.cpp's type "laya".
#
#     [cls] question [sep] [mask] option [mask] option … [sep] state [sep]
#
# The model is trained with a limited number of tokens before the state. Longer options and questions are cut as in the
# training.
#
# Source: ``fill_task_laya`` in llama.cpp's tools/server/server-decision.cpp.

OPTION_TOKENS, LEAST_OPTION = 48, 4
"""Maximum number of tokens of an option's text; and the number of tokens that an option with its mark always has."""
QUESTION_TOKENS, LEAST_QUESTION = 16, 8
"""Number of tokens that options leave to the question; and the number of tokens that the question always has."""


class MarkedOptions(ScoredOptions):
    explains = True

    def __init__(self, model: DecisionModel) -> None:
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
        question = questions[number]
        values = self.model.variables(state, questions, number)
        values = replaced(values, lambda text: text.replace(self.text, " "))
        (ids,), _ = self.model.tokenizer.encode_template(self.model.template, values)
        ids, marks = self.cut(ids, len(question.options))
        reading = Reading(number, marks[0], marks=tuple(marks))
        return DecisionPrompt(ids, (reading,), TYPES.index(question.type))

    def cut(self, ids: Sequence[int], count: int) -> tuple[list[int], list[int]]:
        """The tokens of a prompt with ``count`` options, cut as in the model's training, and the marks' positions.
        Raises TemplateError if the template wrote another layout.
        """
        marks = [at for at, token in enumerate(ids) if token == self.mark]
        end = next((at for at in range(marks[-1], len(ids)) if ids[at] == self.separator), -1) if marks else -1
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


# The prompt and the scores of llama.cpp's type "kev".
#
#     score of an option = q · k / sqrt(P)      q: of the prompt's last token; k: of the token <|box_end|> of the option
#
# The head gives the query and the key of a token, each with P values (``model/decision_heads.py``). All contents are
# texts: objects and lists become indented lines.
#
# Sources: ``fill_task`` and ``decision_kev_render`` in llama.cpp's tools/server/server-decision.cpp, ``send_decision``
# in tools/server/server-context.cpp.

END = "<|box_end|>"  # the control token at the end of an option
WHITE = " \t\n\r"


class PointedOptions(ScoredOptions):
    def __init__(self, model: DecisionModel) -> None:
        super().__init__(model)
        output = model.spec.output
        headed = model.spec.task == "decide" and len(output) == 1 and isinstance(output[0], Dense)
        model.needs(headed, "language models with a pointer head")
        end = model.tokenizer.vocabulary.ids.get(END)
        if end is None or end not in model.tokenizer.vocabulary.special_ids:
            raise FileFormatError(
                model.checkpoint.path, "tokenizer.ggml.tokens", f"has no control token {END}: the prompt needs it"
            )
        self.end = end

    def prompt(self, state: Content, questions: Sequence[Question], number: int) -> DecisionPrompt:
        values = self.model.variables(state, questions, number)
        values |= {"state": plain_text(state), "instructions": plain_text(questions[number].instructions)}
        for option in values["options"]:
            option["key"] = plain_text(option["key"])
            if option["description"] is not None:
                option["description"] = plain_text(option["description"])
        (ids,), _ = self.model.tokenizer.encode_template(self.model.template, values)
        ends = tuple(at for at, token in enumerate(ids) if token == self.end)
        count = len(questions[number].options)
        if len(ends) != count or ends[-1] == len(ids) - 1:
            raise TemplateError(
                f"the decision template ends {len(ends):,} of {count:,} options: it must write {END} after each "
                "option, and another token after the last"
            )
        return DecisionPrompt(ids, (Reading(number, len(ids) - 1, marks=ends),))

    def scores(
        self, model: ScoringModel, prompts: Sequence[DecisionPrompt], edits: Sequence[Edit] | None
    ) -> list[list[Scores]]:
        readings = [prompt.readings[0] for prompt in prompts]
        positions = [(*one.marks, one.position) for one in readings]
        rows = model.rows_at([prompt.ids for prompt in prompts], positions, edits)
        found = {(number, at): row for number, at, row in rows}
        return [
            [pointer_scores(found[number, one.position], np.stack([found[number, at] for at in one.marks]))]
            for number, one in enumerate(readings)
        ]


def pointer_scores(last: NDArray[np.float32], ends: NDArray[np.float32]) -> Scores:
    """The scores (n,) of options, from the row [q | k] (2P,) of the last token and the rows (n, 2P) of the ends."""
    width = len(last) // 2
    products = ends[:, width:].astype(np.float64) * last[:width]
    return np.asarray(products.sum(-1) / math.sqrt(width), np.float32)


def plain_text(value: Any) -> str:
    text: str = without_special(rendered(value))
    return text


def rendered(value: Any, indent: int = 0) -> str:
    """A plain value as text: objects and lists become lines, indented by two spaces for each level."""
    pad = "  " * indent
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, list):
        return "\n".join(f"{pad}- {rendered(one, indent + 1).lstrip(WHITE)}" for one in value)
    if not isinstance(value, dict):
        return json.dumps(value)
    lines = (
        f"{pad}{key}:\n{rendered(one, indent + 1)}" if isinstance(one, (dict, list)) else f"{pad}{key}: {rendered(one)}"
        for key, one in value.items()
    )
    return "\n".join(lines)


LAYOUTS: Mapping[str, Callable[[DecisionModel], ScoredOptions]] = {
    LAYA: MarkedOptions,
    OMNI: OmniOptions,
    KEV: PointedOptions,
    CLEF: JointOptions,
}
