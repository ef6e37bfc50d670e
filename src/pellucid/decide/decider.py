"""A model's decider: it turns a state and questions into prompts, and the scores of the labels into answers.

Each question is a prompt of its own, so that the answer to a question does not depend on the other questions (unless
the model's template or head reads all questions). The prompts share the state's tokens, which the engine reads once
(``engine/tasks/scoring.py``).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Any, Protocol

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from pellucid.decide.labels import (
    MARKED,
    DecisionFormat,
    Label,
    LabelScheme,
    coded_labels,
    column_labels,
    decision_format,
    scheme_of,
    worded_labels,
)
from pellucid.decide.option_layouts import LAYOUTS
from pellucid.decide.prompts import (
    MARK,
    SPLIT,
    DecisionModel,
    DecisionPrompt,
    Reading,
    ScoredOptions,
    marked_question,
    message,
    variables,
    with_sorted_keys,
)
from pellucid.decide.questions import (
    Content,
    Decision,
    DecisionExplanation,
    Decisions,
    ExplainedWord,
    Question,
    Scores,
    WordPlace,
    decision,
)
from pellucid.engine.inputs import Inputs
from pellucid.errors import InvalidRequest, TemplateError, UnsupportedTask, shown
from pellucid.tokenize import Tokenizer
from pellucid.trace.edits import Edit
from pellucid.trace.lenses.attribution import Contribution, contributions, needed
from pellucid.trace.lenses.relevance import propagate
from pellucid.trace.lenses.targets import Readout, mark_readout, token_readout
from pellucid.trace.selection import select
from pellucid.trace.trace import SequenceTrace
from pellucid.trace.traced_model import TracedModel, stream_points
from pellucid.weights.checkpoint import Checkpoint

Labels = Sequence[tuple[Label, ...]]


class Decider:
    """Makes the prompts of decisions for a model, and reads its scores.

    The files of a decision model state its ``format``; for other models it is None. They answer by the letters of the
    options if they have a chat template.

    Raises:
        UnsupportedTask: the model generates no text, or has neither a decision format nor a chat template.
        UnsupportedModel: the file's type of decision model is not implemented.
        FileFormatError: the file's decision format is damaged.
    """

    def __init__(self, checkpoint: Checkpoint, inputs: Inputs) -> None:
        self.format: DecisionFormat | None = decision_format(checkpoint)
        self.scheme: LabelScheme = scheme_of(self.format, checkpoint.path.name)
        self._inputs, self._tokenizer = inputs, inputs.tokenizer
        self._template = None if self.format is None else self.format.template
        vocabulary = inputs.vocabulary
        self._coded = cache(lambda kind: coded_labels(self.scheme, self._tokenizer, kind, vocabulary))
        name = shown(inputs.spec.name)
        if inputs.spec.task not in ("generate", "decide") or inputs.spec.encoder:
            raise UnsupportedTask(f"{name} has no head that scores options: load a decision model")
        if self._template is None and self._tokenizer.chat_template is None:
            raise UnsupportedTask(
                f"{name} is no decision model, and has no chat template to ask it with: load a decision model, or an "
                "instruct model such as smollm2"
            )
        self.options: ScoredOptions | None = None
        """Prompts and scores of a model that scores options themselves; None: it scores their labels."""
        if self.scheme.unlabelled and self.format is not None and self._template is not None:
            parts = (checkpoint, inputs.spec, self._tokenizer, self.format, self.scheme, self._template)
            self.options = LAYOUTS[self.format.type](DecisionModel(*parts))

    def printed(self, content: Content) -> Content:
        """A state or the instructions of a question as the template gets them."""
        if self.options is not None:
            content = self.options.printed(content)
        return with_sorted_keys(content) if self.scheme.sorted_keys else content

    def check_explains(self) -> None:
        """Refuse to explain the decisions of a model whose scores cannot be divided among words.

        Raises:
            InvalidRequest: the model has such scores.
        """
        if self.options is not None and not self.options.explains:
            raise InvalidRequest(
                f"{shown(self._inputs.spec.name)} scores options by products of vectors, which cannot be divided "
                "among words: leave explain out"
            )

    def prompts(self, state: Content, questions: Sequence[Question]) -> list[DecisionPrompt]:
        """The prompts of questions about a state, in the order of the questions.

        Raises:
            InvalidRequest: a question has more options than the model has labels.
            ContextOverflow: a prompt does not fit into the context.
            TemplateError: the template fails.
        """
        if self.options is not None:
            prompts, task = self.options.prompts(state, questions), self._inputs.spec.task
            return [replace(one, ids=self._inputs.prompt(one.ids, task=task)) for one in prompts]
        labels = [self._labels(question) for question in questions]
        if self.format is not None and self.format.type == MARKED and self._template is not None:
            return self._marked_prompts(self._template, state, questions, labels)
        return [
            self._prompt(state, questions, labels, number, reverse)
            for number, question in enumerate(questions)
            for reverse in (False, True)[: self.scheme.orders(question)]
        ]

    def decisions(
        self, questions: Sequence[Question], prompts: Sequence[DecisionPrompt], scores: Sequence[Sequence[Scores]]
    ) -> Decisions:
        """The answers to the questions, from the scores of the labels of each reading of each prompt."""
        read = [
            (reading, own) for prompt, found in zip(prompts, scores) for reading, own in zip(prompt.readings, found)
        ]
        answers, scheme = {}, self.scheme
        for number, group in groupby(read, key=lambda pair: pair[0].number):
            question, pairs = questions[number], list(group)
            keys = [one.key for one in scheme.options(question)]
            temperature = self.format.temperature(question, scheme.bands) if self.format else None
            reversals = [reading.reverse for reading, _ in pairs]
            answers[question.id] = decision(
                question, keys, [own for _, own in pairs], reversals, temperature, scheme.rated
            )
        return Decisions(answers, sum(len(prompt.ids) for prompt in prompts))

    def _labels(self, question: Question) -> tuple[Label, ...]:
        count = self.scheme.outputs(question)
        if self.format is not None and self.format.columns:
            labels = column_labels(self.scheme, question.type, self.format.columns, self._inputs.spec.output_width)
        elif self.scheme.codes is None:
            labels = worded_labels(self.scheme, self._tokenizer, question)
        else:
            labels = self._coded(question.type)
        if len(labels) < count:
            raise InvalidRequest(
                f"questions.{shown(question.id)} has {len(question.options):,} options and needs {count:,} labels of a "
                f"single token, but this model has {len(labels):,}: offer fewer options"
            )
        return tuple(labels[:count])

    def _prompt(
        self, state: Content, questions: Sequence[Question], labels: Labels, number: int, reverse: bool
    ) -> DecisionPrompt:
        """The prompt of one question, which is read at its last token."""
        if self._template is None:
            text = message(self.scheme, state, questions[number], labels[number])
            ids = self._tokenizer.encode_chat([{"role": "user", "content": text}], enable_thinking=False)
        else:
            values = variables(self.scheme, state, questions, labels, number, reverse)
            (ids,), _ = self._tokenizer.encode_template(self._template, values)
        ids = self._inputs.prompt(ids, task=self._inputs.spec.task)
        return DecisionPrompt(ids, (Reading(number, len(ids) - 1, labels[number], reverse),))

    def _marked_prompts(
        self, template: str, state: Content, questions: Sequence[Question], labels: Labels
    ) -> list[DecisionPrompt]:
        """A prompt for each question, or one for all if the template reads ``questions``."""

        def encoded(number: int, asked: Sequence[Any]) -> tuple[list[list[int]], list[str]]:
            values = {"state": state, "question": every[number], "questions": asked}
            return self._tokenizer.encode_template(template, values, (MARK, SPLIT))

        every = [marked_question(self.scheme, one, own) for one, own in zip(questions, labels)]
        if "questions" in template:  # else the template cannot read them
            together = encoded(0, every)
            if together != encoded(0, []):
                return [self._marked(*together, labels, range(len(questions)))]
        alone = (encoded(number, [every[number]]) for number in range(len(questions)))
        return [self._marked(*one, labels, [number]) for number, one in enumerate(alone)]

    def _marked(
        self, parts: Sequence[list[int]], marks: Sequence[str], labels: Labels, numbers: Sequence[int]
    ) -> DecisionPrompt:
        ids, positions = list[int](), list[int]()
        for part, mark in zip(parts, (*marks, "")):
            ids += part
            positions += [len(ids) - 1] if mark == MARK else []
        positions = positions or [len(ids) - 1]
        if len(positions) != len(numbers) or positions[0] < 0:
            raise TemplateError(
                f"the decision template marks {len(positions):,} positions for {len(numbers):,} questions: it is made "
                "for another head"
            )
        readings = tuple(Reading(number, at, labels[number]) for number, at in zip(numbers, positions))
        return DecisionPrompt(self._inputs.prompt(ids, task=self._inputs.spec.task), readings)


# Explains decisions: the words that made an option likely, by their relevance for the difference of two logits.
#
#     logit(option) - logit(against) = Σ words + biases + rounding
#
# The relevance of a word is the sum of the relevances of its tokens, over all paths through the model
# (``trace/lenses/relevance.py``). The difference of the logits, divided by the temperature, is the logarithm of the
# ratio of the two probabilities (if the question was not asked in both orders).


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
            answers[id] = dataclasses.replace(decision, explanation=found)
    return dataclasses.replace(decisions, answers=answers)


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
            name = dataclasses.replace(part, value=0.0)
            parts[name] = parts.get(name, 0.0) + part.value * share
    return DecisionExplanation(
        *compared,
        sum(one.logit for one in each) * share,
        [ExplainedWord(text, value, place, tokens) for (text, place, tokens), value in words.items()],
        sum(one.constant for one in each) * share,
        sum(one.rounding for one in each) * share,
        [dataclasses.replace(name, value=value) for name, value in parts.items()],
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
