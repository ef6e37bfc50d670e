"""Typed questions about a state (a choice, a score, yes or no), and their answers with probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, brief, shown
from pellucid.tokenize.chat.conversation import refuse_other_than_text, template_variables
from pellucid.trace.export import json_fields
from pellucid.util import checks
from pellucid.util.display import escaped, shade
from pellucid.util.probabilities import mean_level, softmax

if TYPE_CHECKING:
    from pellucid.trace.lenses.attribution import Contribution

# Typed questions about a state, in the form of System One's API: a choice, a score or a yes/no question ("noul").
#
#     {"type": "choice", "instructions": "Which team?", "criteria": {"billing": "payments", "shipping": None}}
#     {"type": "score", "instructions": "How urgent?", "criteria": ["can wait", "this week", "today"]}
#     {"type": "noul", "instructions": "Is the customer angry?", "criteria": {"true": "insults us", "false": "is calm"}}
#
# ``criteria`` of a choice are its options, each with a description or None; of a score its levels, the lowest first; of
# a yes/no question, which needs none, descriptions of both answers. Instructions and descriptions are texts, or objects
# and lists, which the model reads as JSON.
#
# Source: ``server_decision_context::parse_questions`` in llama.cpp's tools/server/server-decision.cpp, and the OpenAPI
# of TypeSafe's API.

Content: TypeAlias = str | dict[str, Any] | list[Any]
QuestionType = Literal["choice", "score", "noul"]
TYPES: Sequence[QuestionType] = ("choice", "score", "noul")
FIELDS = ("type", "instructions", "criteria")
MOST_QUESTIONS, MOST_OPTIONS, MOST_NAME = 256, 255, 1000
LEAST_LEVELS, MOST_LEVELS = 2, 10


class Option(Struct, frozen=True):
    """An option of a question: its name, and a description or None."""

    key: str
    description: Content | None = None


class Question(Struct, frozen=True):
    """A question. Options of a score are its levels "0", "1", …; options of a yes/no question are "false" and "true".

    ``type`` is "choice", "score" or "noul" (yes/no).
    """

    id: str
    type: QuestionType
    instructions: Content
    options: tuple[Option, ...]


def questions_of(given: Any) -> list[Question]:
    """Check questions, a mapping from ids to questions, and return them in their order. Raises InvalidRequest if a
    question is wrong; the message names it.
    """
    if not isinstance(given, Mapping) or not given:
        raise InvalidRequest(
            f"questions={brief(given)}: must be a mapping of at least one id to its question, such as "
            '{"angry": {"type": "noul", "instructions": "Is the customer angry?"}}'
        )
    if len(given) > MOST_QUESTIONS:
        raise InvalidRequest(
            f"questions has {len(given):,} questions; the limit is {MOST_QUESTIONS}: ask the rest in another request"
        )
    return [_question(checks.text("the id of a question", id, MOST_NAME), one) for id, one in given.items()]


def state_of(given: Any) -> Content:
    """Check a state: a text, or an object or list, which the model reads as JSON. A list may be chat messages. Raises
    InvalidRequest if the state is of another type, or has a value that JSON does not have, or an image.
    """
    state = _content("state", given)
    messages = state.get("messages") if isinstance(state, dict) else state
    for at, message in enumerate(messages if isinstance(messages, list) else ()):
        if isinstance(message, dict):
            refuse_other_than_text(message.get("content"), f"state[{at}].content")
    return state


def _question(id: str, given: Any) -> Question:
    where = f"questions.{shown(id)}"
    if not isinstance(given, Mapping):
        raise InvalidRequest(f"{where}={brief(given)}: must be an object with type, instructions and criteria")
    if unknown := [name for name in given if name not in FIELDS]:
        raise InvalidRequest(f"{where} has the unknown field {brief(unknown[0])}: it may have {', '.join(FIELDS)}")
    stated = given.get("type")
    kind = next((one for one in TYPES if one == stated), None)
    if kind is None:
        raise InvalidRequest(f"{where}.type={brief(stated)}: must be one of {', '.join(TYPES)} (yes/no)")
    instructions = given.get("instructions")
    if instructions is None or instructions in ("", {}, []):
        raise InvalidRequest(f"{where}.instructions is missing: a question must say what it asks")
    content = _content(f"{where}.instructions", instructions)
    return Question(id, kind, content, OPTIONS[kind](f"{where}.criteria", given.get("criteria")))


def _choices(where: str, given: Any) -> tuple[Option, ...]:
    if not isinstance(given, Mapping) or not given:
        raise InvalidRequest(
            f"{where}={brief(given)}: must be an object of at least one option, each with a description or null"
        )
    if len(given) > MOST_OPTIONS:
        raise InvalidRequest(f"{where} has {len(given):,} options; the limit is {MOST_OPTIONS}: offer fewer")
    return tuple(
        Option(checks.text(f"the name of an option in {where}", key, MOST_NAME), _description(where, key, one))
        for key, one in given.items()
    )


def _levels(where: str, given: Any) -> tuple[Option, ...]:
    levels = given if isinstance(given, (list, tuple)) else ()
    if not LEAST_LEVELS <= len(levels) <= MOST_LEVELS:
        raise InvalidRequest(
            f"{where}={brief(given)}: must be a list of {LEAST_LEVELS} to {MOST_LEVELS} levels, the lowest first"
        )
    for at, level in enumerate(levels):
        if level is None or level in ("", {}, []):
            raise InvalidRequest(f"{where}[{at}] is empty: describe each level")
    return tuple(Option(str(at), _content(f"{where}[{at}]", level)) for at, level in enumerate(levels))


def _yes_and_no(where: str, given: Any) -> tuple[Option, ...]:
    described = {} if given is None else given
    if not isinstance(described, Mapping) or set(described) - {"false", "true"}:
        raise InvalidRequest(
            f"{where}={brief(given)}: must be an object with descriptions of true and false, or left out"
        )
    return tuple(Option(key, _description(where, key, described.get(key))) for key in ("false", "true"))


OPTIONS: Mapping[QuestionType, Callable[[str, Any], tuple[Option, ...]]] = {
    "choice": _choices,
    "score": _levels,
    "noul": _yes_and_no,
}
"""The function that reads the criteria of each type."""


def _description(where: str, key: Any, given: Any) -> Content | None:
    return None if given is None else _content(f"{where}.{shown(str(key))}", given)


def _content(where: str, given: Any) -> Content:
    if not isinstance(given, (str, Mapping, list, tuple)):
        raise InvalidRequest(f"{where}={brief(given)}: must be a text, an object or a list")
    content: Content = template_variables({where: given})[where]
    return content


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
        from pellucid.trace.lenses.attribution import Contribution

        words = [ExplainedWord(**{**one, "tokens": range(*one["tokens"])}) for one in fields["words"]]
        parts = [Contribution(**one) for one in fields["parts"]]
        return cls(**{**fields, "words": words, "parts": parts})

    def _repr_html_(self) -> str:
        largest = max((abs(one.value) for one in self.words), default=0.0)
        words = "".join(
            f'<span title="{one.value:+.3f}" style="margin:1px;{shade(one.value, largest)}">{escaped(one.text)}</span> '
            for one in self.words
        )
        return f"<p>{escaped(repr(self))}</p><p>{words}</p>"


# Scores of options → probabilities, the answer, and its confidence.
#
#     p = softmax(score / temperature)      float64; averaged over both orders of the options if both were asked
#     choice    the option with the largest p; confidence (p_max - 1/n) / (1 - 1/n), at least 0
#     score     Σ level · p; confidence 1 - Σ p |level - mode| / mean |level - (n - 1)/2|, at least 0
#     noul      p("true")
#
# Source: ``format_answer`` in llama.cpp's tools/server/server-decision.cpp; the formulas of confidence are TypeSafe's.

Scores = NDArray[np.float32]


@dataclass(frozen=True, repr=False)
class Decision:
    """The answer to a question.

    ``value`` is the name of the chosen option of a choice, the expected level of a score, or the probability of "yes".
    ``probabilities`` has the probability of each option; they sum to 1. ``confidence`` is between 0 and 1, None for a
    yes/no question. ``temperature`` is the temperature that the model's file states for such questions, None if it
    states none: then the probabilities are the model's own, uncalibrated. ``scores`` are the logits of the options'
    labels (n,), in the order of ``probabilities``; for a question in both orders the mean of both, and for a yes/no
    question on a scale of ratings the ratings' logits.
    """

    question: Question
    value: str | float
    probabilities: Mapping[str, float]
    confidence: float | None
    temperature: float | None
    scores: Sequence[float]
    explanation: DecisionExplanation | None = None

    @property
    def type(self) -> QuestionType:
        """The type of the question: "choice", "score" or "noul" (yes/no)."""
        return self.question.type

    def __repr__(self) -> str:
        value = self.value if isinstance(self.value, str) else round(self.value, 4)
        each = ", ".join(f"{key} {p:.3f}" for key, p in self.probabilities.items())
        return f"Decision({self.type} {value!r}: {each})"

    def as_dict(self) -> dict[str, Any]:
        """The answer in the form of System One's API, with the explanation if there is one."""
        answer: dict[str, Any] = {"type": self.type, self.type: self.value}
        if self.type == "score":
            answer["legend"] = {one.key: one.description for one in self.question.options}
        if self.type != "noul":
            answer |= {"probabilities": dict(self.probabilities), "confidence": self.confidence}
        if self.explanation is not None:
            answer["explanation"] = self.explanation.as_dict(parts=False)
        return answer


@dataclass(frozen=True, repr=False)
class Decisions(Mapping[str, Decision]):
    """The answers by the ids of the questions: ``decisions["team"].value``.

    ``prompt_tokens`` is the number of tokens of all prompts together (``decider.py``).
    """

    answers: Mapping[str, Decision]
    prompt_tokens: int

    def __getitem__(self, id: str) -> Decision:
        return self.answers[id]

    def __iter__(self) -> Iterator[str]:
        return iter(self.answers)

    def __len__(self) -> int:
        return len(self.answers)

    def __repr__(self) -> str:
        return f"Decisions({', '.join(f'{id}: {one!r}' for id, one in self.answers.items())})"

    def as_dict(self) -> dict[str, Any]:
        """The answers in the form of System One's API, by id."""
        return {id: one.as_dict() for id, one in self.answers.items()}


def decision(
    question: Question,
    keys: Sequence[str],
    scores: Sequence[Scores],
    reversals: Sequence[bool],
    temperature: float | None,
    rated: bool,
) -> Decision:
    """The answer to a question. ``keys`` are the names of the options in the order of their labels.

    ``scores`` has the scores of each prompt of the question; the labels of a prompt in ``reversals`` belong to the
    options in reverse order. With ``rated``, a yes/no question has scores of ratings from no to yes.
    """
    ordered = [np.asarray(one[::-1] if reverse else one, np.float64) for one, reverse in zip(scores, reversals)]
    p = np.mean([softmax(one, temperature or 1.0) for one in ordered], axis=0)
    mean = np.mean(ordered, axis=0)
    if question.type == "noul" and rated:
        yes = mean_level(p, np.arange(len(p))) / (len(p) - 1)
        each = {"false": 1.0 - yes, "true": yes}
        return Decision(question, yes, each, None, temperature, mean.tolist())
    at = {key: place for place, key in enumerate(keys)}
    places = [at[one.key] for one in question.options]
    p, mean = p[places], mean[places]
    probabilities = {one.key: float(x) for one, x in zip(question.options, p)}
    value, confidence = _value(question, probabilities, p)
    return Decision(question, value, probabilities, confidence, temperature, mean.tolist())


def _value(
    question: Question, probabilities: Mapping[str, float], p: NDArray[np.float64]
) -> tuple[str | float, float | None]:
    if question.type == "noul":
        return probabilities["true"], None
    if question.type == "choice":
        return question.options[int(p.argmax())].key, choice_confidence(p)
    return mean_level(p, np.arange(len(p))), score_confidence(p)


def choice_confidence(p: NDArray[np.float64]) -> float:
    """How far the largest of the probabilities (n,) is above 1/n, as a share; 1 for a single option."""
    if len(p) < 2:
        return 1.0
    return max(0.0, (float(p.max()) - 1 / len(p)) / (1 - 1 / len(p)))


def score_confidence(p: NDArray[np.float64]) -> float:
    """1 - the mean distance to the likeliest level, relative to the mean distance of all levels to their centre."""
    levels = np.arange(len(p))
    spread = mean_level(p, np.abs(levels - int(p.argmax())))
    return max(0.0, 1.0 - spread / float(np.abs(levels - (len(p) - 1) / 2).mean()))
