"""The prompt of a model that scores each option at a mark before it, as in llama.cpp's type "laya".

    [cls] question [sep] [mask] option [mask] option … [sep] state [sep]

The model is trained with a limited number of tokens before the state. Longer options and questions are cut as in the
training.

Source: ``fill_task_laya`` in llama.cpp's tools/server/server-decision.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from pellucid.errors import FileFormatError, TemplateError, UnsupportedModel
from pellucid.errors.messages import shown
from pellucid.model.spec import ModelSpec
from pellucid.tokenize import Tokenizer
from pellucid.weights.checkpoint import Checkpoint

OPTION_TOKENS, LEAST_OPTION = 48, 4
"""Maximum number of tokens of an option's text; and the number of tokens that an option with its mark always has."""
QUESTION_TOKENS, LEAST_QUESTION = 16, 8
"""Number of tokens that options leave to the question; and the number of tokens that the question always has."""


class MarkedOptions(Struct, frozen=True):
    """The tokens of the marks of options and of the separators, and ``limit``, the maximum of tokens before the state.

    ``text`` is the text of the mark, which contents must not contain.
    """

    mark: int
    separator: int
    text: str
    limit: int

    @staticmethod
    def of(checkpoint: Checkpoint, spec: ModelSpec, tokenizer: Tokenizer, limit: int) -> MarkedOptions:
        """The marks of a model.

        Raises:
            UnsupportedModel: the model does not score options at marks.
            FileFormatError: the file names no mask token or no separator.
        """
        path, ids, named = checkpoint.path, tokenizer.vocabulary.ids, tokenizer.named_tokens
        if spec.decision is None:
            raise UnsupportedModel(
                f"{shown(path.name)}: decision.type = laya is implemented for modern-bert with decision blocks, not "
                f"for the family {spec.family}"
            )
        separator = ids.get(named.get("sep_token", ""))
        for name, found in (("mask", tokenizer.mask_id), ("seperator", separator)):
            if found is None:
                raise FileFormatError(
                    path, f"tokenizer.ggml.{name}_token_id", "is missing: the prompt needs it"
                )
        assert tokenizer.mask_id is not None
        assert separator is not None
        return MarkedOptions(tokenizer.mask_id, separator, named["mask_token"], limit)

    def cleaned(self, value: Any) -> Any:
        """A plain value without the text of the mark, as in the model's training."""
        if isinstance(value, dict):
            return {key: self.cleaned(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self.cleaned(one) for one in value]
        return value.replace(self.text, " ") if isinstance(value, str) else value

    def prompt(self, ids: Sequence[int], count: int) -> tuple[list[int], list[int]]:
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
