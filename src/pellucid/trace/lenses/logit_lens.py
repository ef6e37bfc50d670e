"""The logit lens: what the model would say if it ended after a block (nostalgebraist 2020).

The residual stream after each block goes through the model's own last norm and head, by the kernels that make its
logits; the last row is the model's own output, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.trace.model import TracedModel, read, residual_points, token_of
from pellucid.trace.trace import SequenceTrace
from pellucid.util.checks import whole

MOST_TOP = 1000
TOGETHER = 64  # rows whose logits are made at once


@dataclass(frozen=True, repr=False)
class LogitLens:
    """The most likely tokens by layer (L, one row for the embedding and one for each block) and position (T).

    ``ids`` (L, T, k) and their ``probabilities``; ``entropy`` (L, T) of each distribution in nats; ``agreement``
    (L, T), the probability of the token that the last layer says. ``wanted`` (L, T, n) are the probabilities of tokens
    that were asked for. ``pieces`` are the texts of the T tokens read.
    """

    layers: list[str]
    pieces: list[str]
    ids: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    entropy: NDArray[np.float64]
    agreement: NDArray[np.float64]
    wanted: NDArray[np.float64]
    texts: dict[int, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        said = self.texts.get(int(self.ids[-1, -1, 0]), "")
        size = f"{len(self.layers)} layers, {len(self.pieces)} positions"
        return f"LogitLens({size}, says {said!r} after {self.pieces[-1]!r})"

    def top(self, layer: int, position: int = -1) -> list[tuple[str, float]]:
        """The most likely tokens and their probabilities."""
        ids, found = self.ids[layer, position], self.probabilities[layer, position]
        return [(self.texts[int(token)], float(p)) for token, p in zip(ids, found)]

    def _repr_html_(self) -> str:
        """The likeliest token of each layer and position, as strong as its probability."""
        from pellucid.util.display import shade, table

        rows = [
            [name.removesuffix(".residual"), *((self.top(layer, at)[0][0], shade(self.top(layer, at)[0][1], 1.0))
             for at in range(len(self.pieces)))]
            for layer, name in enumerate(self.layers)
        ]  # fmt: skip
        return table(["after", *self.pieces], rows, "the logit lens: the likeliest next token")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "layers": self.layers,
            "pieces": self.pieces,
            "top": [
                [self.top(layer, at) for at in range(len(self.pieces))] for layer in range(len(self.layers))
            ],
            "entropy": self.entropy.tolist(),
            "agreement": self.agreement.tolist(),
            "wanted": self.wanted.tolist(),
        }


def needed(model: TracedModel) -> list[str]:
    """The points that the lens reads."""
    return residual_points(model)


def logit_lens(
    model: TracedModel,
    of: Any,
    *,
    top: int = 5,
    tokens: Sequence[int | str] = (),
    positions: Sequence[int] | None = None,
) -> LogitLens:
    """Look at a prompt, or at a sequence of a trace that has the residual stream after every block.

    Args:
        of: a prompt, which is run, or a ``SequenceTrace``.
        top: how many tokens are kept of each distribution.
        tokens: tokens whose probability is wanted everywhere.
        positions: the positions to look at (all by default); negative ones count from the end.

    Raises:
        InvalidRequest: an argument is out of range, the trace lacks a point, or the model makes no text.
    """
    if not model.spec.head:
        raise InvalidRequest("a logit lens is for models that make text")
    top, names = whole("top", top, 1, min(MOST_TOP, model.spec.embedding.vocabulary)), residual_points(model)
    wanted = np.array([token_of(model, token) for token in tokens], np.int64)
    sequence = of if isinstance(of, SequenceTrace) else read(model, of, names)
    every = range(len(sequence))
    chosen = list(every) if positions is None else [_position(one, len(every)) for one in positions]
    if not chosen:
        raise InvalidRequest("positions=[]: name one at least, or leave it out for all")
    pieces = [sequence.pieces[at] for at in chosen]
    rows = np.concatenate([sequence[name][chosen] for name in names])
    T, found = len(chosen), list[tuple[Any, ...]]()
    final = model.runner.project(rows[-T:])
    said = final.argmax(-1)
    for first in range(0, len(rows), TOGETHER):
        part = rows[first : first + TOGETHER]
        ends = said[np.arange(first, first + len(part)) % T]
        found.append(_of_logits(model.runner.project(part), top, ends, wanted))
    ids, probabilities, entropy, agreement, of_wanted = (
        np.concatenate(parts).reshape(len(names), T, *parts[0].shape[1:]) for parts in zip(*found)
    )
    texts = {int(token): model.tokenizer.piece(int(token)) for token in np.unique(ids)}
    return LogitLens(names, pieces, ids, probabilities, entropy, agreement, of_wanted, texts)


def _of_logits(
    logits: NDArray[np.float32], top: int, said: NDArray[np.int64], wanted: NDArray[np.int64]
) -> tuple[NDArray[Any], ...]:
    """(ids, probabilities, entropy, probability of what is said in the end, probabilities of wanted tokens)."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    weights = np.exp(wide)
    total = weights.sum(-1, keepdims=True)
    part = (
        np.argpartition(-wide, top - 1, axis=-1)[:, :top]
        if top < wide.shape[1]
        else np.argsort(-wide, axis=-1)
    )
    order = np.take_along_axis(part, np.argsort(-np.take_along_axis(wide, part, -1), -1, kind="stable"), -1)
    probabilities = weights / total
    finite = np.where(weights > 0, wide, 0.0)
    entropy = np.log(total[:, 0]) - (probabilities * finite).sum(-1)
    rows = np.arange(len(wide))
    return (
        order,
        np.take_along_axis(probabilities, order, -1),
        entropy,
        probabilities[rows, said],
        probabilities[:, wanted],
    )


def _position(position: int, count: int) -> int:
    at = whole("position", position, -count, count - 1, f"the text has {count:,} tokens")
    return at % count
