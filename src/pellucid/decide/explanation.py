"""The words that made an option likely: their relevance for the difference of two options' logits.

    logit(option) - logit(against) = Σ words + biases + rounding

The relevance of a word is the sum of the relevances of its tokens, over all paths through the model
(``trace/lenses/relevance.py``). The difference of the logits, divided by the temperature, is the logarithm of the ratio
of the two probabilities (if the question was not asked in both orders).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pellucid.decide.answers import Decision, Decisions, Scores
from pellucid.decide.labels import LabelScheme
from pellucid.decide.prompts import DecisionPrompt
from pellucid.decide.questions import Content
from pellucid.errors import InvalidRequest
from pellucid.tokenize import Tokenizer
from pellucid.trace.edits import Edit
from pellucid.trace.lenses.attribution import Attribution, attribute, needed
from pellucid.trace.lenses.relevance import propagate
from pellucid.trace.trace import SequenceTrace
from pellucid.trace.traced_model import TracedModel, stream_points

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


@dataclass(frozen=True, repr=False)
class DecisionExplanation:
    """Why ``option`` is likelier than ``against``, the next likely option.

    ``logit`` is the difference of the logits of their labels. The values of ``words``, the contribution ``constant`` of
    biases, and ``rounding`` sum to it. ``attribution`` divides the same difference among the parts of the model.
    """

    option: str
    against: str
    logit: float
    words: Sequence[ExplainedWord]
    constant: float
    rounding: float
    attribution: Attribution

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

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dictionary for JSON."""
        return {
            "option": self.option,
            "against": self.against,
            "logit": self.logit,
            "words": [{"text": one.text, "value": one.value, "place": one.place} for one in self.words],
            "constant": self.constant,
            "rounding": self.rounding,
        }

    def _repr_html_(self) -> str:
        """The words of the prompt, coloured by their relevance."""
        from pellucid.util.display import escaped, shade

        largest = max((abs(one.value) for one in self.words), default=0.0)
        words = "".join(
            f'<span title="{one.value:+.3f}" style="margin:1px;{shade(one.value, largest)}">{escaped(one.text)}</span> '
            for one in self.words
        )
        return f"<p>{escaped(repr(self))}</p><p>{words}</p>"


class DecidingModel(TracedModel, Protocol):
    """A loaded model that scores labels; ``llm.LLM`` implements it."""

    def label_scores(
        self,
        prompts: Sequence[list[int]],
        labels: Sequence[Sequence[Sequence[int]]],
        edits: Sequence[Edit] | None = None,
    ) -> list[NDArray[np.float32]]: ...


def explained(
    model: DecidingModel,
    scheme: LabelScheme,
    decisions: Decisions,
    prompts: Sequence[DecisionPrompt],
    scores: Sequence[Scores],
    state: Content,
    edits: Sequence[Edit] | None,
) -> Decisions:
    """The decisions with explanations of each question's first prompt, which runs again with traces.

    A question with a single option has no explanation.

    Raises:
        InvalidRequest: the model's residual stream is not a sum, or a prompt is too long to be traced.
    """
    answers = dict(decisions.answers)
    ids = list(answers)
    for prompt, own in zip(prompts, scores):
        decision = answers[ids[prompt.number]]
        if decision.explanation is None and len(own) > 1:
            found = _explain(model, scheme, decision, prompt, own, state, edits)
            answers[ids[prompt.number]] = replace(decision, explanation=found)
    return replace(decisions, answers=answers)


def _explain(
    model: DecidingModel,
    scheme: LabelScheme,
    decision: Decision,
    prompt: DecisionPrompt,
    scores: Scores,
    state: Content,
    edits: Sequence[Edit] | None,
) -> DecisionExplanation:
    def record(points: Sequence[str]) -> SequenceTrace:
        with model.trace(*points) as trace:
            model.label_scores([prompt.ids], [[label.tokens for label in prompt.labels]], edits)
        if trace.dropped:
            raise InvalidRequest(
                f"a prompt of {len(prompt.ids):,} tokens is too long to be explained: shorten the state, or leave "
                "explain out"
            )
        return trace.sequences[0]

    names, last = _option_names(scheme, decision, prompt), len(prompt.ids) - 1
    first, second = np.argsort(-scores.astype(np.float64), kind="stable")[:2].tolist()
    sequence = record([f"{name}[tokens={last}:]" for name in dict.fromkeys(needed(model))])
    logits = model.project(sequence.at(stream_points(model)[-1], last))[0]
    chosen, other = (
        max(prompt.labels[at].tokens, key=lambda token: float(logits[token])) for at in (first, second)
    )
    parts = attribute(model, sequence, chosen, against=other)
    found = propagate(model, parts, sequence, record)
    words = explained_words(
        model.tokenizer, prompt.ids, found.tokens, state, decision.question.instructions
    )
    return DecisionExplanation(
        names[first], names[second], found.logit, words, found.constant, found.rounding, parts
    )


def _option_names(scheme: LabelScheme, decision: Decision, prompt: DecisionPrompt) -> list[str]:
    """The names of the options of a prompt's labels."""
    question = decision.question
    if scheme.outputs(question) != len(question.options):
        return [f"rating {rating}" for rating in range(scheme.outputs(question))]
    names = [one.key for one in scheme.options(question)]
    return names[::-1] if prompt.reverse else names


def explained_words(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    shares: NDArray[np.float64],
    state: Content,
    instructions: Content,
) -> list[ExplainedWord]:
    """The words of a prompt with the sum of their tokens' ``shares`` (T,).

    A word begins at white space; a control token is a word of its own.
    """
    special, groups = tokenizer.vocabulary.special_ids, tokenizer.characters(ids)
    text = "".join(group.text for group in groups)
    state_span = _span(text, state, range(0))
    spans: dict[WordPlace, range] = {"state": state_span, "question": _span(text, instructions, state_span)}
    words, start, offset = list[ExplainedWord](), 0, 0
    for number, group in enumerate(groups):
        after = groups[number + 1] if number + 1 < len(groups) else None
        ends = after is None or after.text[:1].isspace() or {ids[group.first], ids[after.first]} & special
        if not ends:
            continue
        whole = "".join(one.text for one in groups[start : number + 1])
        tokens = range(groups[start].first, group.stop)
        first = offset + len(whole) - len(whole.lstrip())
        place = next((name for name, span in spans.items() if first in span), "prompt")
        words.append(
            ExplainedWord(whole.strip() or whole, float(shares[tokens.start : tokens.stop].sum()), place, tokens)
        )
        start, offset = number + 1, offset + len(whole)
    return words


def _span(text: str, content: Content, before: range) -> range:
    """The characters of a content in a prompt's text, as the template prints it; empty if it prints it otherwise.

    They are outside of the span ``before``.
    """
    compact = {"separators": (",", ":")}
    forms = (
        [content]
        if isinstance(content, str)
        else [json.dumps(content, ensure_ascii=False, **style) for style in ({}, compact)]
    )
    for form in forms:
        for start in (text.find(form, before.stop), text.find(form, 0, before.start)):
            if form and start >= 0:
                return range(start, start + len(form))
    return range(0)
