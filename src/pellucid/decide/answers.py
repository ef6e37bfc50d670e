"""Scores of options → probabilities, the answer, and its confidence.

    p = softmax(score / temperature)      float64; averaged over both orders of the options if both were asked
    choice    the option with the largest p; confidence (p_max - 1/n) / (1 - 1/n), at least 0
    score     Σ level · p; confidence 1 - Σ p |level - mode| / mean |level - (n - 1)/2|, at least 0
    noul      p("true")

Source: ``format_answer`` in llama.cpp's tools/server/server-decision.cpp; the formulas of confidence are TypeSafe's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pellucid.decide.questions import Question, QuestionType
from pellucid.util.probabilities import mean_level, softmax

if TYPE_CHECKING:
    from pellucid.decide.explanation import DecisionExplanation

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
    ordered = [
        np.asarray(one[::-1] if reverse else one, np.float64) for one, reverse in zip(scores, reversals)
    ]
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
