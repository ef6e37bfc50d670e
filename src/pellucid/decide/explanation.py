"""The words that made an option likely: their relevance for the difference of two options' logits.

    logit(option) - logit(against) = Σ words + biases + rounding

The relevance of a word is the sum of the relevances of its tokens, over all paths through the model
(``trace/lenses/relevance.py``). The difference of the logits, divided by the temperature, is the logarithm of the ratio
of the two probabilities (if the question was not asked in both orders).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pellucid.trace.export import json_fields
from pellucid.trace.lenses.attribution import Contribution

WordPlace = Literal["state", "question", "prompt"]


@dataclass(frozen=True)
class ExplainedWord:
    """A word of a prompt: its text, its relevance ``value``, and its place.

    The place is "state", "question" (the question's instructions), or "prompt" for other words. ``tokens`` are the
    positions of its tokens.
    """

    text: str
    value: float
    place: WordPlace
    tokens: range

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dictionary for JSON; ``tokens`` are the first position and the position after the last."""
        return {**vars(self), "tokens": [self.tokens.start, self.tokens.stop]}


@dataclass(frozen=True, repr=False)
class DecisionExplanation:
    """Why ``option`` is likelier than ``against``, the next likely option.

    ``logit`` is the difference of the logits of their labels, before the soft-cap if the model has one (of a question
    in both orders, the mean of both prompts, whose words are all here), or of their scores at marks. The values of
    ``words``, the contribution ``constant`` of biases and of the vector of the question's type, and ``rounding`` sum to
    it. ``parts`` divide the same difference among the parts of the
    model (``trace/lenses/attribution.py``).
    """

    option: str
    against: str
    logit: float
    words: Sequence[ExplainedWord]
    constant: float
    rounding: float
    parts: Sequence[Contribution]

    def __repr__(self) -> str:
        most = ", ".join(f"{one.text!r} {one.value:+.2f}" for one in self.ranked()[:3])
        return f"DecisionExplanation({self.option!r} against {self.against!r}: {self.logit:+.3f}, most by {most})"

    @property
    def total(self) -> float:
        """The sum of all contributions."""
        return sum(one.value for one in self.words) + self.constant + self.rounding

    def ranked(self, place: WordPlace | None = "state") -> list[ExplainedWord]:
        """The words of a place (None: all words), in descending order of absolute value."""
        words = [one for one in self.words if place in (None, one.place)]
        return sorted(words, key=lambda one: -abs(one.value))

    def as_dict(self, *, parts: bool = True) -> dict[str, Any]:
        """The fields as a dictionary for JSON, without the ``parts`` if these are not wanted."""
        more = ("parts",) if parts else ()
        return json_fields(self, "option", "against", "logit", "words", "constant", "rounding", *more)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> DecisionExplanation:
        """Rebuild an explanation from ``as_dict``."""
        words = [ExplainedWord(**{**one, "tokens": range(*one["tokens"])}) for one in fields["words"]]
        parts = [Contribution(**one) for one in fields["parts"]]
        return cls(**{**fields, "words": words, "parts": parts})

    def _repr_html_(self) -> str:
        from pellucid.util.display import escaped, shade

        largest = max((abs(one.value) for one in self.words), default=0.0)
        words = "".join(
            f'<span title="{one.value:+.3f}" style="margin:1px;{shade(one.value, largest)}">{escaped(one.text)}</span> '
            for one in self.words
        )
        return f"<p>{escaped(repr(self))}</p><p>{words}</p>"
