"""The prompt and the scores of llama.cpp's type "kev".

    score of an option = q · k / sqrt(P)      q: of the prompt's last token; k: of the token <|box_end|> of the option

The head gives the query and the key of a token, each with P values (``model/pointer_head.py``). All contents are
texts: objects and lists become indented lines.

Sources: ``fill_task`` and ``decision_kev_render`` in llama.cpp's tools/server/server-decision.cpp, ``send_decision`` in
tools/server/server-context.cpp.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.decide.answers import Scores
from pellucid.decide.prompts import DecisionPrompt, Reading
from pellucid.decide.questions import Content, Question
from pellucid.decide.scored_options import DecisionModel, ScoredOptions, ScoringModel, without_special
from pellucid.errors import FileFormatError, TemplateError
from pellucid.model.outputs import Dense
from pellucid.trace.edits import Edit

END = "<|box_end|>"
"""The control token at the end of an option."""
WHITE = " \t\n\r"


class PointedOptions(ScoredOptions):
    """The prompts and scores of the type "kev"."""

    def __init__(self, model: DecisionModel) -> None:
        """Find the token at the end of options.

        Raises:
            UnsupportedModel: the model has no pointer head.
            FileFormatError: the vocabulary lacks the token.
        """
        super().__init__(model)
        output = model.spec.output
        headed = model.spec.task == "decide" and len(output) == 1 and isinstance(output[0], Dense)
        model.needs(headed, "language models with a pointer head")
        end = model.tokenizer.vocabulary.ids.get(END)
        if end is None or end not in model.tokenizer.vocabulary.special_ids:
            raise FileFormatError(
                model.checkpoint.path,
                "tokenizer.ggml.tokens",
                f"has no control token {END}: the prompt needs it",
            )
        self.end = end

    def prompt(self, state: Content, questions: Sequence[Question], number: int) -> DecisionPrompt:
        """The prompt of the question ``number``."""
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
        """The products of queries and keys."""
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
    """A plain value as the text that the model reads, without control tokens."""
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
        f"{pad}{key}:\n{rendered(one, indent + 1)}"
        if isinstance(one, (dict, list))
        else f"{pad}{key}: {rendered(one)}"
        for key, one in value.items()
    )
    return "\n".join(lines)
