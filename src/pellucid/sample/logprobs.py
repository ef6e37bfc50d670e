"""Log-probabilities of tokens, and the effect of a sampler step on a distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pellucid.sample.candidates import Candidates, Floats, Ints


@dataclass(frozen=True)
class Logprobs:
    """Log-probabilities of n tokens and of the N most likely alternatives to each, in nats.

    ``ids`` (n,) are the tokens, ``chosen`` (n,) their log-probabilities, ``ranks`` (n,) their ranks (1 is the most
    likely). ``top_ids`` (n, N) are the most likely tokens in descending order, ``top`` (n, N) their log-probabilities.
    If there are fewer than N candidates, the remaining entries of a row have id -1 and log-probability minus infinity.
    ``final`` (n, N) are the log-probabilities of ``top_ids`` after the sampler chain, if they were requested.
    """

    ids: Ints
    chosen: Floats
    ranks: Ints
    top_ids: Ints
    top: Floats
    final: Floats | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def total(self) -> float:
        """The log-probability of all tokens together."""
        return float(self.chosen.sum())


@dataclass(frozen=True)
class TokenLogprobs:
    """One row of ``Logprobs``."""

    id: int
    chosen: float
    rank: int
    top_ids: Ints
    top: Floats
    final: Floats | None = None


def of_token(candidates: Candidates, token: int, alternatives: int, vocabulary: int) -> TokenLogprobs:
    """The log-probabilities of a token and of the most likely alternatives among candidates.

    The token's log-probability is minus infinity if it is not a candidate. A model may have more logits than tokens in
    its ``vocabulary``. All logits then count in the softmax, but the alternatives and the rank include only tokens.
    """
    tokens = candidates.first(vocabulary) if candidates.ids is None else candidates
    count = min(alternatives, len(tokens))
    positions = tokens.top(count) if count else np.empty(0, np.int64)
    logs, ids = candidates.log_probabilities(positions), candidates.ids_at(positions)
    matches = np.flatnonzero(ids == token)
    if len(matches):
        rank, chosen = int(matches[0]) + 1, float(logs[matches[0]])
    else:
        at = candidates.positions(np.array([token]))
        chosen = float(candidates.log_probabilities(at)[0]) if len(at) else -np.inf
        rank = _rank(tokens, int(at[0])) if len(at) else len(tokens) + 1
    if count < alternatives:
        missing = alternatives - count
        ids, logs = (np.pad(ids, (0, missing), constant_values=-1), np.pad(logs, (0, missing), constant_values=-np.inf))
    return TokenLogprobs(token, chosen, rank, ids, logs)


def token_logprobs(
    logits: NDArray[np.float32], place: int, token: int, alternatives: int, vocabulary: int
) -> TokenLogprobs:
    """The log-probability of a token of a text, from the logits (V,) of its position ``place``."""
    return of_token(Candidates.of(logits, f"prompt token {place}"), token, alternatives, vocabulary)


def _rank(candidates: Candidates, position: int) -> int:
    if candidates.ranked:
        return position + 1
    raw = candidates.raw
    above = np.count_nonzero(raw > raw[position]) + np.count_nonzero(raw[:position] == raw[position])
    return int(above) + 1


def joined(rows: Sequence[TokenLogprobs], alternatives: int) -> Logprobs:
    """Stack rows into arrays."""
    finals = [row.final for row in rows if row.final is not None]
    return Logprobs(
        np.array([row.id for row in rows], np.int64),
        np.array([row.chosen for row in rows], np.float64),
        np.array([row.rank for row in rows], np.int64),
        np.array([row.top_ids for row in rows], np.int64).reshape(len(rows), alternatives),
        np.array([row.top for row in rows], np.float64).reshape(len(rows), alternatives),
        np.array(finals, np.float64) if finals else None,
    )


# The effect of a sampler step on a distribution: a comparison of the candidates before and after the step. The
# comparison runs only if a trace is requested. It takes a few passes over the vocabulary for each step.


@dataclass(frozen=True)
class StepTrace:
    """The effect of one step.

    ``removed`` is the number of tokens that lose all their probability, ``left`` the number of tokens with a
    probability above 0 after the step. ``removed_mass`` is the probability that the removed tokens had. ``moved`` is
    the total variation distance: half the sum of absolute differences of the probabilities. ``entropy_before`` and
    ``entropy_after`` are in nats. ``note`` is the step's own description of its state.
    """

    name: str
    removed: int
    left: int
    removed_mass: float
    moved: float
    entropy_before: float
    entropy_after: float
    note: str = ""


def compare(name: str, before: Candidates, after: Candidates, note: str = "") -> StepTrace:
    """The effect of the step ``name``, from the candidates before and after it."""
    size = len(before) if before.ids is None else int(before.ids.max()) + 1
    p, q = spread(before, size), spread(after, size)
    gone = (p > 0) & (q == 0)
    return StepTrace(
        name,
        removed=int(gone.sum()),
        left=int((q > 0).sum()),
        removed_mass=float(p[gone].sum()),
        moved=float(np.abs(p - q).sum() / 2),
        entropy_before=before.sums.entropy,
        entropy_after=after.sums.entropy,
        note=note,
    )


def spread(candidates: Candidates, size: int) -> Floats:
    """Probabilities by token id, (size,) float64."""
    out = np.zeros(size)
    out[slice(len(candidates)) if candidates.ids is None else candidates.ids] = candidates.probabilities()
    return out
