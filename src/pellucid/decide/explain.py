"""Explains decisions: the words that made an option likely, by their relevance for the difference of two logits.

    logit(option) - logit(against) = Σ words + biases + rounding

The relevance of a word is the sum of the relevances of its tokens, over all paths through the model
(``trace/lenses/relevance.py``). The difference of the logits, divided by the temperature, is the logarithm of the ratio
of the two probabilities (if the question was not asked in both orders).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pellucid.decide.decider import Decider
from pellucid.decide.labels import LabelScheme
from pellucid.decide.prompts import DecisionPrompt, Reading
from pellucid.decide.questions import Content, Decision, DecisionExplanation, Decisions, ExplainedWord, WordPlace
from pellucid.errors import InvalidRequest
from pellucid.tokenize import Tokenizer
from pellucid.trace.edits import Edit
from pellucid.trace.lenses.attribution import Contribution, contributions, needed
from pellucid.trace.lenses.relevance import propagate
from pellucid.trace.lenses.targets import Readout, mark_readout, token_readout
from pellucid.trace.selection import select
from pellucid.trace.trace import SequenceTrace
from pellucid.trace.traced_model import TracedModel, stream_points


class DecidingModel(TracedModel, Protocol):
    """A loaded model that scores labels; ``llm.LLM`` implements it."""

    def label_scores(
        self, prompts: Sequence[DecisionPrompt], edits: Sequence[Edit] | None = None
    ) -> list[list[NDArray[np.float32]]]: ...


def explained(
    model: DecidingModel,
    decider: Decider,
    decisions: Decisions,
    prompts: Sequence[DecisionPrompt],
    state: Content,
    edits: Sequence[Edit] | None,
) -> Decisions:
    """The decisions with explanations. The prompts run again with traces.

    A question with a single option has no explanation. Raises InvalidRequest if the model's residual stream is not a
    sum, an edit is after the last block, or a prompt is too long to be traced.
    """
    for one in select(model.points, [edit.where for edit in edits or ()]):
        if one.point.rows == "outputs":
            raise InvalidRequest(
                "edits: an explanation computes all operations after the last block without edits: remove the edit of "
                f"{one.name}, or leave explain out"
            )
    answers = dict(decisions.answers)
    readings = ((prompt, reading) for prompt in prompts for reading in prompt.readings)
    own = groupby(readings, key=lambda pair: pair[1].number)
    for id, (_, group) in zip(decisions, own):
        decision = answers[id]
        if len(decision.scores) > 1:
            found = _explain(model, decider, decision, list(group), state, edits)
            answers[id] = replace(decision, explanation=found)
    return replace(decisions, answers=answers)


def _explain(
    model: DecidingModel,
    decider: Decider,
    decision: Decision,
    readings: Sequence[tuple[DecisionPrompt, Reading]],
    state: Content,
    edits: Sequence[Edit] | None,
) -> DecisionExplanation:
    scheme = decider.scheme
    compared = _compared(scheme, decision)
    contents = [decider.printed(one) for one in (state, decision.question.instructions)]

    def of_reading(prompt: DecisionPrompt, reading: Reading) -> DecisionExplanation:
        def record(points: Sequence[str]) -> SequenceTrace:
            with model.trace(*points) as trace:
                model.label_scores([prompt], edits)
            if trace.dropped:
                raise InvalidRequest(
                    f"a prompt of {len(prompt.ids):,} tokens is too long to be explained: shorten the state, or leave "
                    "explain out"
                )
            return trace.sequences[0]

        first, *_, last = sorted(reading.marks) or [reading.position] * 2
        sequence = record([f"{name}[tokens={first}:{last + 1}]" for name in dict.fromkeys(needed(model))])
        names = _option_names(scheme, decision, reading)
        readout = _readout(model, sequence, reading, [names.index(name) for name in compared])
        parts = contributions(model, sequence, readout)
        found = propagate(model, readout, sequence.pieces, record)
        words = explained_words(model.tokenizer, prompt.ids[: len(found.tokens)], found.tokens, *contents)
        return DecisionExplanation(*compared, found.logit, words, found.constant, found.rounding, parts)

    each = [of_reading(*one) for one in readings]
    if len(each) == 1:
        return each[0]
    share = 1 / len(each)
    words, parts = dict[tuple[str, WordPlace, range], float](), dict[Contribution, float]()
    for one in each:
        for word in one.words:
            key = (word.text, word.place, word.tokens)
            words[key] = words.get(key, 0.0) + word.value * share
        for part in one.parts:
            name = replace(part, value=0.0)
            parts[name] = parts.get(name, 0.0) + part.value * share
    return DecisionExplanation(
        *compared,
        sum(one.logit for one in each) * share,
        [ExplainedWord(text, value, place, tokens) for (text, place, tokens), value in words.items()],
        sum(one.constant for one in each) * share,
        sum(one.rounding for one in each) * share,
        [replace(name, value=value) for name, value in parts.items()],
    )


def _compared(scheme: LabelScheme, decision: Decision) -> tuple[str, str]:
    """The names of the likeliest option and of the next; ratings, if the question was answered on a scale of them."""
    if scheme.outputs(decision.question) == len(decision.question.options):
        values = decision.probabilities
    else:
        values = {_rating(number): score for number, score in enumerate(decision.scores)}
    first, second, *_ = sorted(values, key=lambda name: -values[name])
    return first, second


def _rating(number: int) -> str:
    return f"rating {number}"


def _readout(model: TracedModel, sequence: SequenceTrace, reading: Reading, compared: Sequence[int]) -> Readout:
    if reading.marks:
        return mark_readout(model, sequence, *(reading.marks[number] for number in compared))
    logits = model.project(sequence.at(stream_points(model)[-1], reading.position))[0]
    token, against = (max(reading.labels[number].tokens, key=lambda token: float(logits[token])) for number in compared)
    return token_readout(model, sequence, logits, token, against, reading.position)


def _option_names(scheme: LabelScheme, decision: Decision, reading: Reading) -> list[str]:
    question = decision.question
    if scheme.outputs(question) != len(question.options):
        return [_rating(number) for number in range(scheme.outputs(question))]
    names = [one.key for one in scheme.options(question)]
    return names[::-1] if reading.reverse else names


def explained_words(
    tokenizer: Tokenizer, ids: Sequence[int], shares: NDArray[np.float64], state: Content, instructions: Content
) -> list[ExplainedWord]:
    """The words of a prompt with the sum of their tokens' ``shares`` (T,).

    A word begins at white space, or where the state or the instructions begin or end. A control token is a word of its
    own.
    """
    special, groups = tokenizer.vocabulary.special_ids, tokenizer.characters(ids)
    text = "".join(group.text for group in groups)
    state_span = _span(text, state, range(0))
    spans: Mapping[WordPlace, range] = {"state": state_span, "question": _span(text, instructions, state_span)}

    def place_at(character: int) -> WordPlace:
        return next((name for name, span in spans.items() if character in span), "prompt")

    words, start, begin, stop = list[ExplainedWord](), 0, 0, 0
    for number, group in enumerate(groups):
        stop += len(group.text)
        first = stop - len(text[begin:stop].lstrip())  # the word's first character that is not white space
        after = groups[number + 1] if number + 1 < len(groups) else None
        if after is not None and not {ids[group.first], ids[after.first]} & special:
            spaced = after.text[:1].isspace() or text[stop - 1 : stop].isspace()
            if first == stop or not (spaced or place_at(stop) != place_at(first)):
                continue
        whole, tokens = text[begin:stop], range(groups[start].first, group.stop)
        value = float(shares[tokens.start : tokens.stop].sum())
        words.append(ExplainedWord(whole.strip() or whole, value, place_at(first), tokens))
        start, begin = number + 1, stop
    return words


def _span(text: str, content: Content, before: range) -> range:
    """The characters of a content in a prompt's text, as the template prints it; empty if it prints it otherwise.

    They are outside of the span ``before``.
    """
    forms = [content] if isinstance(content, str) else [
        json.dumps(content, ensure_ascii=False, separators=own) for own in (None, (",", ":"))
    ]  # fmt: skip
    for form in forms:
        for start in (text.find(form, before.stop), text.find(form, 0, before.start)):
            if form and start >= 0:
                return range(start, start + len(form))
    return range(0)
