"""The logit lens and the label lens: the prediction of the model if it ended after a block."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.model.outputs import scores_of
from pellucid.sample.candidates import Candidates
from pellucid.tokenize.infill import masks_of
from pellucid.tokenize.stages.decode import CharacterGroup, several
from pellucid.trace.export import Axis, Exportable, LabelledArray, json_fields, numbered
from pellucid.trace.trace import SequenceTrace
from pellucid.trace.traced_model import TracedModel, read, residual_points, token_of
from pellucid.util.checks import index, whole
from pellucid.util.display import shade, table
from pellucid.util.probabilities import exponentials

# The logit lens: the prediction of the model if it ended after a block (nostalgebraist 2020).
#
# The residual stream after each block goes through the model's last norm and output head, with the same kernels as in a
# run. After the last block, the prediction is therefore the model's own output, bit for bit.
#
# In a masked language model, the prediction is the token at each mask of the text.

MOST_TOP = 1000
# The number of rows whose logits are computed together. More rows take more memory, and save no time.
TOGETHER = 64


@dataclass(frozen=True, repr=False)
class LogitLens(Exportable):
    """The most likely tokens by layer (L: the embedding and each block) and position (T).

    ``ids`` (L, T, k) are the most likely tokens, ``probabilities`` (L, T, k) their probabilities. ``entropy`` (L, T) is
    the entropy of each distribution in nats. ``agreement`` (L, T) is the probability of the last layer's most likely
    token. ``wanted`` (L, T, n) are the probabilities of the requested tokens, and ``ranks`` (L, T, n) their ranks: 1 is
    the most likely token, and tokens with the same logit have the same rank. ``positions`` are the T positions,
    ``tokens`` their tokens, and ``pieces`` their texts. ``texts`` has the text of each id in ``ids``. ``characters``
    are the characters that span several of the T tokens. ``fills``: the predictions are tokens at the positions, not
    after them.
    """

    layers: list[str]
    pieces: list[str]
    ids: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    entropy: NDArray[np.float64]
    agreement: NDArray[np.float64]
    wanted: NDArray[np.float64]
    ranks: NDArray[np.int64]
    texts: dict[int, str] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    characters: Sequence[CharacterGroup] = ()
    fills: bool = False
    positions: Sequence[int] = ()

    def __repr__(self) -> str:
        text = self.texts.get(int(self.ids[-1, -1, 0]), "")
        size = f"{len(self.layers)} layers, {len(self.pieces)} positions"
        return f"LogitLens({size}, says {text!r} {'at' if self.fills else 'after'} {self.pieces[-1]!r})"

    def top(self, layer: int, position: int = -1) -> list[tuple[str, float]]:
        """The most likely tokens of a layer at a position, with their probabilities.

        ``layer`` and ``position`` are indices of the lens's layers and positions. Raises InvalidRequest.
        """
        at = index("layer", layer, len(self.ids)), index("position", position, self.ids.shape[1])
        ids, probabilities = self.ids[at], self.probabilities[at]
        return [(self.texts[int(token)], float(p)) for token, p in zip(ids, probabilities)]

    def _values(self) -> list[LabelledArray]:
        axes = (
            Axis("layer", "L", [name.removesuffix(".residual") for name in self.layers]),
            Axis("token", "T", self.positions, self.pieces),
        )
        texts = np.array([self.texts.get(token, "") for token in self.ids.reshape(-1).tolist()], object)
        more = {"id": self.ids, "text": texts.reshape(self.ids.shape)}
        by_rank = Axis("rank", "k", range(1, self.ids.shape[-1] + 1))
        by_token = numbered("wanted", "n", self.wanted.shape[-1])
        first = {name: own[..., 0] for name, own in more.items()}
        return [
            LabelledArray("probability", self.probabilities, (*axes, by_rank), more),
            LabelledArray("likeliest", self.probabilities[..., 0], axes, first),
            LabelledArray("entropy", self.entropy, axes),
            LabelledArray("agreement", self.agreement, axes),
            LabelledArray("wanted", self.wanted, (*axes, by_token)),
            LabelledArray("rank", self.ranks, (*axes, by_token)),
        ]

    def plot(self, name: str = "likeliest", *, ax: Any = None) -> Any:
        """Draw a value, by default the probability of the most likely token of each layer and position."""
        return super().plot(name, ax=ax)

    def _repr_html_(self) -> str:
        rows: list[list[Any]] = []
        for layer, name in enumerate(self.layers):
            likeliest = [self.top(layer, position)[0] for position in range(len(self.pieces))]
            rows.append([name.removesuffix(".residual"), *((text, shade(p, 1.0)) for text, p in likeliest)])
        what = "token at each position" if self.fills else "next token"
        return table(["after", *self.pieces], rows, f"the logit lens: the likeliest {what}")

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dictionary for JSON."""
        names = ("layers", "tokens", "pieces", "characters", "ids", "probabilities", "texts", "entropy", "agreement")
        return json_fields(self, *names, "wanted", "ranks")


class Transport(Protocol):
    """Moves vectors (n, D) after some ``blocks`` to the space of the last block, as a ``JacobianLens`` does."""

    @property
    def blocks(self) -> Collection[int]: ...
    def __call__(self, rows: NDArray[np.float32], layer: int) -> NDArray[np.float32]: ...


def needed(model: TracedModel) -> list[str]:
    return residual_points(model)


def logit_lens(
    model: TracedModel,
    of: Any,
    *,
    top: int = 5,
    tokens: Sequence[int | str] = (),
    positions: Sequence[int] | None = None,
    transport: Transport | None = None,
) -> LogitLens:
    """Apply the logit lens to a prompt, or to a sequence of a trace that has the residual stream after every block.

    Args:
        of: a prompt, which is run, or a ``SequenceTrace``.
        top: number of tokens that are kept of each distribution.
        tokens: further tokens, whose probability and rank are computed for every layer and position.
        positions: the positions to look at (by default all positions, or the masks of a masked language model);
            negative positions count from the end.
        transport: a Jacobian lens, which moves the stream of its blocks to the space of the last block. Other layers
            are left out.

    Raises:
        InvalidRequest: an argument is out of range, the trace lacks a point, the text has no mask, or the model neither
            generates text nor fills masks.
    """
    fills = model.spec.task == "fill"
    if not (model.spec.generates or fills):
        raise InvalidRequest(
            "the logit lens needs a model that generates text or fills masks: for a classifier use label_lens"
        )
    top, names = whole("top", top, 1, min(MOST_TOP, model.spec.embedding.vocabulary)), residual_points(model)
    requested = np.array([token_of(model, token) for token in tokens], np.int64)
    if transport is not None:
        names = [name for name in names[:-1] if _block(name) in transport.blocks] + names[-1:]
    sequence = read(model, of, names)
    every = range(len(sequence))
    if fills and positions is None:
        positions = masks_of(model.tokenizer, sequence.ids)
    chosen = list(every) if positions is None else [_position(position, len(every)) for position in positions]
    if not chosen:
        raise InvalidRequest("positions=[]: give at least one position, or leave positions out for all")
    size = model.inputs.vocabulary if fills else None
    read_ids, read_pieces = sequence.ids, sequence.pieces
    pieces = [read_pieces[at] for at in chosen]
    # The last layer comes first, because the other layers are compared with its prediction.
    read_rows = {name: _finite(sequence, name, chosen) for name in names}
    if transport is not None:
        read_rows |= {name: transport(read_rows[name], _block(name)) for name in names[:-1]}
    rows = np.concatenate([read_rows[name] for name in reversed(names)])
    T, likeliest, summaries = len(chosen), list[int](), list[_Read]()
    for first in range(0, len(rows), TOGETHER):
        for at, logits in enumerate(model.project(rows[first : first + TOGETHER])[:, :size], first):
            candidates = Candidates.of(logits, f"position {chosen[at % T]} after {names[-1 - at // T]}")
            likeliest += [candidates.best] if at < T else []
            summaries.append(_Read.of(candidates, top, likeliest[at % T], requested))
    arrays: dict[str, Any] = {
        name: np.array(parts).reshape(len(names), T, *np.shape(parts[0]))[::-1]
        for name, parts in zip(_Read._fields, zip(*summaries))
    }
    texts = {int(token): model.tokenizer.piece(int(token)) for token in np.unique(arrays["ids"])}
    token_ids = [read_ids[at] for at in chosen]
    # Characters are found only in a text without gaps between the positions.
    together = several(model.tokenizer.characters(token_ids)) if chosen == [*range(T)] else []
    return LogitLens(
        names, pieces, **arrays, texts=texts, tokens=token_ids, characters=together, fills=fills, positions=chosen
    )


class _Read(NamedTuple):
    """The values of a ``LogitLens`` for one layer and position."""

    ids: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    entropy: float
    agreement: float
    wanted: NDArray[np.float64]
    ranks: NDArray[np.int64]

    @classmethod
    def of(cls, candidates: Candidates, top: int, likeliest: int, requested: NDArray[np.int64]) -> _Read:
        ids = candidates.top(top)
        of_all = exponentials(candidates.log_probabilities(np.concatenate([ids, [likeliest], requested])))
        ranks = [1 + np.count_nonzero(candidates.raw > candidates.raw[token]) for token in requested]
        return cls(
            ids, of_all[:top], candidates.sums.entropy, float(of_all[top]), of_all[top + 1 :], np.array(ranks, np.int64)
        )


def _finite(sequence: SequenceTrace, name: str, positions: Sequence[int]) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = sequence[name]
    if max(positions) >= len(rows):
        raise InvalidRequest(f"point={name}: position {max(positions)} was not recorded: trace all positions")
    rows = rows[positions]
    if len(wrong := np.flatnonzero(~np.isfinite(rows).all(-1))):
        position = positions[wrong[0]]
        raise InvalidRequest(f"point={name}: the values at position {position} are not finite, or were not recorded")
    return rows


def _block(name: str) -> int:
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blocks" else -1


def _position(position: int, count: int) -> int:
    index = whole("position", position, -count, count - 1, f"the text has {count:,} tokens")
    return index % count


# The label lens: the scores of a classifier's labels if the model ended after a block.
#
# The residual stream after each block goes through the norm, the pooling and the output layers, with the same kernels
# as in a run. After the last block, the scores are therefore the model's own scores, bit for bit.


@dataclass(frozen=True, repr=False)
class LabelLens(Exportable):
    """The ``logits`` and ``scores`` (L, N) of N ``labels`` by layer (L: the embedding and each block)."""

    layers: list[str]
    labels: tuple[str, ...]
    logits: NDArray[np.float32]
    scores: NDArray[np.float64]

    def __repr__(self) -> str:
        label, score = self.ranked(-1)[0]
        return f"LabelLens({len(self.layers)} layers, says {label!r} with {score:.3f})"

    def ranked(self, layer: int) -> list[tuple[str, float]]:
        """All labels with their scores after a layer, the highest first."""
        return sorted(zip(self.labels, self.scores[layer].tolist()), key=lambda pair: -pair[1])

    def _values(self) -> list[LabelledArray]:
        layers = Axis("layer", "L", [name.removesuffix(".residual") for name in self.layers])
        axes = layers, Axis("label", "N", self.labels)
        return [LabelledArray("score", self.scores, axes), LabelledArray("logit", self.logits, axes)]

    def _repr_html_(self) -> str:
        rows: list[list[Any]] = [
            [name.removesuffix(".residual"), *((f"{score:.3f}", shade(score, 1.0)) for score in own)]
            for name, own in zip(self.layers, self.scores.tolist())
        ]
        return table(["after", *self.labels], rows, "the label lens: the scores of the labels")

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dictionary for JSON."""
        return json_fields(self, "layers", "labels", "logits", "scores")


def label_lens(model: TracedModel, of: Any) -> LabelLens:
    """Apply the lens to a text, a pair of texts, or a sequence of a trace that has the residual stream of every block.

    Raises:
        InvalidRequest: the model is no classifier of texts, or a value was not recorded or is not finite.
    """
    spec = model.spec
    labels, pooling = spec.labels, spec.pooling
    if spec.task != "classify" or labels is None or pooling is None:
        raise InvalidRequest("the label lens needs a classifier of texts: for masks and next tokens use logit_lens")
    names = residual_points(model)
    sequence = read(model, of, names)
    # A model that reads one row of a text needs only this row.
    chosen = {"cls": slice(0, 1), "last": slice(-1, None)}.get(pooling.kind, slice(None))
    rows = [sequence[name] for name in names]
    for name, own in zip(names, rows):
        if len(own) != len(sequence) or not np.isfinite(own).all():
            raise InvalidRequest(f"point={name}: a value is not finite, or was not recorded: trace all positions")
    logits = np.concatenate([model.project(own[chosen], len(own[chosen])) for own in rows])
    scores = np.array([scores_of(labels, own) for own in logits])
    return LabelLens(names, labels.names, logits, scores)
