"""How well a model predicts a text, and how far two models are apart on it: over windows that overlap.

A model that begins every text with a token (BOS) has it at the beginning of each window, where it counts as one of its
tokens; the first token of the text is scored then.

A text is cut into windows of so many tokens, each ``stride`` further on than the one before. Of each only the tokens
that no window before it had are scored, with all others of the window before them: so a token has at least ``window`` -
``stride`` tokens of context, the first ones of the text apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pellucid.engine.scoring import score, teacher_forced_logits
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import shown
from pellucid.llm import LLM
from pellucid.runtime.cache import BlockTable
from pellucid.sample.candidates import Candidates
from pellucid.util.checks import whole

USUAL_WINDOW = 512
Told = Callable[[int, int, str], None]
"""(done, total, what): progress in tokens, and how it stands."""


@dataclass(frozen=True)
class Window:
    """Tokens ``start`` to ``stop`` of a text, of which those from ``first`` on are scored."""

    start: int
    first: int
    stop: int


@dataclass(frozen=True)
class Estimate:
    """A mean over tokens, with its standard error as if they were independent; None of a single one."""

    mean: float
    error: float | None

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Estimate:
        """Of some values, of which there is at least one."""
        spread = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
        return cls(float(values.mean()), spread)


@dataclass(frozen=True)
class Perplexity:
    """``nats`` is the mean surprise of a token; ``tokens`` were scored, of a text of ``text_bytes`` bytes of UTF-8."""

    nats: Estimate
    tokens: int
    text_bytes: int
    window: int
    stride: int

    @property
    def perplexity(self) -> float:
        """exp of the mean surprise."""
        return math.exp(self.nats.mean)

    @property
    def bits_per_byte(self) -> float:
        """What the text would take, whatever tokens it is cut into."""
        return self.nats.mean * self.tokens / math.log(2) / self.text_bytes


@dataclass(frozen=True)
class Divergence:
    """KL(reference ‖ model) of next-token distributions in nats: mean, median, 99th percentile, most. ``same_top`` is
    how often both have the same most likely token.
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
    llm: LLM, text: str, window: int | None = None, stride: int | None = None, told: Told | None = None
) -> Perplexity:
    """How well a model predicts a text.

    Raises:
        InvalidRequest: the text has fewer than two tokens, or window or stride is out of range.
    """
    asked = _asked(llm, text, window, stride)
    found: list[float] = []
    for here, first, stop in asked.parts():
        sequence = BlockTable()
        try:
            scored = score(llm.runner, sequence, here, 0, llm.inputs.vocabulary, first)
        finally:
            llm.runner.release(sequence)
        found += (-scored.chosen).tolist()
        if told:
            told(stop, len(asked.ids), f"perplexity {math.exp(sum(found) / len(found)):.4f}")
    size = len(text.encode())
    return Perplexity(Estimate.of(np.array(found)), len(found), size, asked.window, asked.stride)


def divergence(
    llm: LLM,
    reference: LLM,
    text: str,
    window: int | None = None,
    stride: int | None = None,
    told: Told | None = None,
) -> Divergence:
    """How far a model's next-token distributions are from a reference's, over the whole vocabulary, in float64.

    Raises:
        InvalidRequest: as ``perplexity``, or the two have different vocabularies.
    """
    names = f"{shown(llm.spec.name)} and {shown(reference.spec.name)}"
    if llm.tokenizer.vocabulary.tokens != reference.tokenizer.vocabulary.tokens:
        raise InvalidRequest(f"{names} have different vocabularies: only models of one can be compared")
    rows, others = llm.spec.embedding.vocabulary, reference.spec.embedding.vocabulary
    if rows != others:
        raise InvalidRequest(
            f"{names} have {rows:,} and {others:,} rows of logits: their distributions are not over the same tokens; "
            "compare files of one conversion"
        )
    asked = _asked(llm if llm.context < reference.context else reference, text, window, stride)
    found, same = [], 0
    for here, first, stop in asked.parts():
        for p, q in zip(
            _distributions(reference, here, first), _distributions(llm, here, first), strict=True
        ):
            found.append(float((np.exp(p) * (p - q))[p > -np.inf].sum()))
            same += int(p.argmax() == q.argmax())
        if told:
            told(stop, len(asked.ids), f"divergence {sum(found) / len(found):.3g}")
    values = np.array(found)
    median, p99 = np.quantile(values, [0.5, 0.99]).tolist()
    most, share = float(values.max()), same / len(values)
    return Divergence(Estimate.of(values), median, p99, most, share, len(values), asked.window, asked.stride)


def windows(tokens: int, window: int, stride: int, first: int = 1) -> Iterator[Window]:
    """The windows of a text; each token from the ``first`` on is scored once."""
    for start in range(0, tokens, stride):
        stop = min(start + window, tokens)
        if stop > first:
            yield Window(start, first, stop)
            first = stop
        if stop == tokens:
            return


@dataclass(frozen=True)
class _Asked:
    """A text's ``ids``, without what goes ``before`` each window; and how it is cut."""

    ids: list[int]
    before: list[int]
    window: int
    stride: int

    def parts(self) -> Iterator[tuple[list[int], int, int]]:
        """The ids of each window, from which of them on they are scored, and where it ends in the text."""
        more = len(self.before)
        for part in windows(len(self.ids), self.window - more, self.stride, 1 - more):
            yield [*self.before, *self.ids[part.start : part.stop]], part.first - part.start + more, part.stop


def _asked(llm: LLM, text: str, window: int | None, stride: int | None) -> _Asked:
    ids = llm.inputs.corpus(text)
    before = ids[:1] if llm.tokenizer.bos_id is not None and ids[0] == llm.tokenizer.bos_id else []
    least = 2 + len(before)
    window = whole("window", min(USUAL_WINDOW, llm.context) if window is None else window, least, llm.context)
    most = window - len(before) - 1
    stride = whole(
        "stride", max(window // 2, 1) if stride is None else stride, 1, most, "less than the window"
    )
    return _Asked(ids[len(before) :], before, window, stride)


def _distributions(llm: LLM, ids: list[int], first: int) -> Iterator[NDArray[np.float64]]:
    """Log-probabilities (V,) of each token from place ``first`` on."""
    sequence = BlockTable()
    try:
        for place, row in teacher_forced_logits(llm.runner, sequence, ids, first):
            yield Candidates.of(row, f"token {place}").log_probabilities()
    finally:
        llm.runner.release(sequence)
