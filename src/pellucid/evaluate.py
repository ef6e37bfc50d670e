"""The perplexity of a model on a text, and the divergence of two models on a text, over overlapping windows.

A text is cut into windows of ``window`` tokens. Each window begins ``stride`` tokens after the previous window. A
window scores only the tokens that no earlier window contains, given all earlier tokens of the window. So each token has
at least ``window`` - ``stride`` tokens of context, except at the beginning of the text.

If a model begins every text with a BOS token, each window begins with this token. The BOS token counts as a token of
the window. It is context for the first token of the text, so this first token is scored too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pellucid.engine.tasks.scoring import score, teacher_forced_logits
from pellucid.errors import InvalidRequest, shown
from pellucid.llm import LLM
from pellucid.sample.candidates import Candidates
from pellucid.util.checks import whole

USUAL_WINDOW = 512
Progress = Callable[[int, int, str], None]
"""Progress callback: tokens done, tokens in total, the result so far as text."""


@dataclass(frozen=True)
class Window:
    """Tokens ``start`` to ``stop`` - 1 of a text. Tokens from ``first`` on are scored."""

    start: int
    first: int
    stop: int


@dataclass(frozen=True)
class Estimate:
    """A mean over tokens. ``error`` is its standard error if the values are independent (None for a single value)."""

    mean: float
    error: float | None

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Estimate:
        """Estimate the mean of at least one value."""
        spread = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
        return cls(float(values.mean()), spread)


@dataclass(frozen=True)
class Perplexity:
    """The perplexity of a model on a text.

    ``nats`` is the mean negative log-probability of a token, ``tokens`` the number of scored tokens, ``text_bytes`` the
    length of the text in bytes of UTF-8.
    """

    nats: Estimate
    tokens: int
    text_bytes: int
    window: int
    stride: int

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability."""
        return math.exp(self.nats.mean)

    @property
    def bits_per_byte(self) -> float:
        """Mean bits per byte of the text. The figure is comparable between models with different tokenizers."""
        return self.nats.mean * self.tokens / math.log(2) / self.text_bytes


@dataclass(frozen=True)
class Divergence:
    """KL(reference ‖ model) of next-token distributions in nats: mean, median, 99th percentile, maximum.

    ``same_top`` is the share of positions where both models have the same most likely token.
    """

    nats: Estimate
    median: float
    p99: float
    most: float
    same_top: float
    tokens: int
    window: int
    stride: int


def perplexity(
    llm: LLM, text: str, window: int | None = None, stride: int | None = None, progress: Progress | None = None
) -> Perplexity:
    """Measure how well a model predicts a text.

    Raises:
        InvalidRequest: the text has fewer than two tokens, or window or stride is out of range.
    """
    windowed = _windowed(llm, text, window, stride)
    nats: list[float] = []
    for here, first, stop in windowed.parts():
        scored = score(llm.engine, here, 0, llm.inputs.vocabulary, first)
        nats += (-scored.chosen).tolist()
        if progress:
            progress(stop, len(windowed.ids), f"perplexity {math.exp(sum(nats) / len(nats)):.4f}")
    size = len(text.encode())
    return Perplexity(Estimate.of(np.array(nats)), len(nats), size, windowed.window, windowed.stride)


def divergence(
    llm: LLM,
    reference: LLM,
    text: str,
    window: int | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
) -> Divergence:
    """Measure how far a model's next-token distributions are from a reference's, over the whole vocabulary, in float64.

    Raises:
        InvalidRequest: as ``perplexity``, or the models have different vocabularies.
    """
    names = f"{shown(llm.spec.name)} and {shown(reference.spec.name)}"
    if llm.tokenizer.vocabulary.tokens != reference.tokenizer.vocabulary.tokens:
        raise InvalidRequest(f"{names} have different vocabularies: compare models with the same vocabulary")
    rows, others = llm.spec.embedding.vocabulary, reference.spec.embedding.vocabulary
    if rows != others:
        raise InvalidRequest(
            f"{names} have {rows:,} and {others:,} rows of logits: their distributions are not over the same tokens; "
            "compare files that were converted in the same way"
        )
    windowed = _windowed(llm if llm.context < reference.context else reference, text, window, stride)
    nats, same = [], 0
    for here, first, stop in windowed.parts():
        for p, q in zip(_distributions(reference, here, first), _distributions(llm, here, first), strict=True):
            logs, other_logs = p.log_probabilities(), q.log_probabilities()
            nats.append(float((p.probabilities() * (logs - other_logs))[logs > -np.inf].sum()))
            same += int(p.best == q.best)
        if progress:
            progress(stop, len(windowed.ids), f"divergence {sum(nats) / len(nats):.3g}")
    values = np.array(nats)
    median, p99 = np.quantile(values, [0.5, 0.99]).tolist()
    most, share = float(values.max()), same / len(values)
    return Divergence(Estimate.of(values), median, p99, most, share, len(values), windowed.window, windowed.stride)


def windows(tokens: int, window: int, stride: int, first: int = 1) -> Iterator[Window]:
    """Yield the windows of a text. Each token from ``first`` on is scored once."""
    for start in range(0, tokens, stride):
        stop = min(start + window, tokens)
        if stop > first:
            yield Window(start, first, stop)
            first = stop
        if stop == tokens:
            return


@dataclass(frozen=True)
class _WindowedText:
    """A text's ``ids``, the ids ``before`` each window (BOS or none), and the window and stride."""

    ids: list[int]
    before: list[int]
    window: int
    stride: int

    def parts(self) -> Iterator[tuple[list[int], int, int]]:
        """Yield each window's ids, the index of the first id that is scored, and the window's end in the text."""
        more = len(self.before)
        for part in windows(len(self.ids), self.window - more, self.stride, 1 - more):
            yield [*self.before, *self.ids[part.start : part.stop]], part.first - part.start + more, part.stop


def _windowed(llm: LLM, text: str, window: int | None, stride: int | None) -> _WindowedText:
    ids = llm.inputs.corpus(text)
    before = ids[:1] if llm.tokenizer.bos_id is not None and ids[0] == llm.tokenizer.bos_id else []
    least = 2 + len(before)
    window = whole("window", min(USUAL_WINDOW, llm.context) if window is None else window, least, llm.context)
    most = window - len(before) - 1
    stride = whole("stride", max(window // 2, 1) if stride is None else stride, 1, most, "less than the window")
    return _WindowedText(ids[len(before) :], before, window, stride)


def _distributions(llm: LLM, ids: list[int], first: int) -> Iterator[Candidates]:
    for place, row in teacher_forced_logits(llm.engine, ids, first):
        yield Candidates.of(row, f"token {place}")
