"""The part of a text that answers a question (Rajpurkar et al. 2016; with BERT: Devlin et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.encoders.model import EncoderModel
from pellucid.tokenize.encoding import Encoding
from pellucid.trace.edits import Edit
from pellucid.util.probabilities import softmax

STRIDE = 128
"""Tokens by which the windows of a long text overlap."""


class AnswerSpan(Struct, frozen=True):
    """The characters ``start`` to ``end`` - 1 of a text as an answer, with their probability in their window.

    ``text`` is "" and both offsets are 0 if the text has no answer.
    """

    text: str
    score: float
    start: int
    end: int


def answer(
    model: EncoderModel,
    question: str,
    text: str,
    *,
    top: int = 1,
    longest: int,
    unanswerable: bool = False,
    edits: Sequence[Edit] | None = None,
) -> list[AnswerSpan]:
    """The ``top`` most likely answers of at most ``longest`` tokens, the most likely first.

    A long text is read in windows. With ``unanswerable``, "no answer" is a possible answer: its score is the lowest
    score of the first token among the windows.

    Raises:
        ContextOverflow: the question leaves no room for the text.
    """
    stride = min(STRIDE, model.inputs.context // 2 - 1)
    windows = model.inputs.windows(question, text, stride)
    found, none = dict[tuple[int, int], float](), 1.0
    for (_, window), rows in zip(windows, model.encode([given for given, _ in windows], edits)):
        spans, first = _spans(window, rows, longest)
        none = min(none, first)
        for start, end, score in spans:
            found[start, end] = max(score, found.get((start, end), 0.0))
    answers = [AnswerSpan(text[start:end], score, start, end) for (start, end), score in found.items()]
    if unanswerable:
        answers.append(AnswerSpan("", none, 0, 0))
    return sorted(answers, key=lambda one: (-one.score, one.start, one.end))[:top]


def _spans(
    window: Encoding, rows: NDArray[np.float32], longest: int
) -> tuple[Iterator[tuple[int, int, float]], float]:
    """The characters and the scores of all spans of a window, and the score of the first token, "no answer".

    The probabilities that an answer begins or ends at a token are a softmax over the tokens of the text and the first
    token. The score of a span is the product of the probabilities of its ends.
    """
    inside = np.array([token.sequence == 1 for token in window])
    allowed = inside.copy()
    allowed[0] = True
    begins, ends = (softmax(np.where(allowed, column, -np.inf)) for column in rows.T)

    def spans() -> Iterator[tuple[int, int, float]]:
        places = np.flatnonzero(inside)
        for place in places:
            for last in range(place, min(place + longest, places[-1] + 1)):
                score = float(begins[place] * ends[last])
                yield window[int(place)].start, window[int(last)].end, score

    return spans(), float(begins[0] * ends[0])
