"""Direct logit attribution by token: the contribution of each token that attention reads to the logit of a token.

The output of a head is the sum of the values of the tokens it attends to, times their weights. So its contribution to
the logit (``trace/lenses/attribution.py``) is a sum over these tokens (Ferrando et al. 2023, "Explaining How
Transformers Use Context to Build Predictions", arXiv:2305.12535). In an encoder-decoder, cross attention reads the
tokens of the source; the values of a source's token are projections of the encoder's output at this token.

``trace/lenses/relevance.py`` divides a logit among the tokens over all paths through the model instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.model.spec import Attention
from pellucid.trace.export import json_fields
from pellucid.trace.lenses import attribution
from pellucid.trace.lenses.attribution import AttributedPosition, attention_of, gathered_points, target
from pellucid.trace.trace import SequenceTrace
from pellucid.trace.traced_model import TracedModel, read


class ContributingToken(NamedTuple):
    """A token of the ``text`` or of the ``source`` with its contribution."""

    of: Literal["text", "source"]
    position: int
    piece: str
    value: float


@dataclass(frozen=True, repr=False)
class TokenContributions:
    """The contributions of tokens to ``logit`` (a logit, or the difference of two logits).

    ``tokens`` (T,) are the contributions of the T tokens up to the position, through all heads that attend to them.
    ``source`` (S,) are the contributions of the source's tokens in an encoder-decoder, through cross attention.
    ``pieces`` and ``source_pieces`` are the texts of the tokens. ``rest`` is the contribution of all other parts at the
    position (its embedding, feed-forwards, biases, rounding). All sum to ``logit``.
    """

    pieces: Sequence[str]
    tokens: NDArray[np.float64]
    source_pieces: Sequence[str]
    source: NDArray[np.float64]
    logit: float

    def __repr__(self) -> str:
        each = ", ".join(f"{one.piece!r} {one.value:+.3f}" for one in self.ranked()[:3])
        return f"TokenContributions({self.logit:+.3f}, most by {each})"

    @property
    def rest(self) -> float:
        """The contribution of all other parts."""
        return self.logit - float(self.tokens.sum()) - float(self.source.sum())

    def ranked(self) -> list[ContributingToken]:
        """The tokens of the text and of the source, in descending order of their contributions' absolute values."""
        text, source = zip(self.pieces, self.tokens), zip(self.source_pieces, self.source)
        found = [ContributingToken("text", at, piece, float(x)) for at, (piece, x) in enumerate(text)]
        found += [ContributingToken("source", at, piece, float(x)) for at, (piece, x) in enumerate(source)]
        return sorted(found, key=lambda one: -abs(one.value))

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dictionary for JSON."""
        return json_fields(self, "pieces", "tokens", "source_pieces", "source", "rest", "logit")


def needed(model: TracedModel, position: int | None = None) -> list[str]:
    """The points that the lens reads. With a ``position``, the attention patterns of this position alone. Raises
    InvalidRequest if the model has several residual streams, or an attention's values are not points.
    """
    stages = gathered_points(model)
    part = "" if position is None else f"[tokens={position}:{position + 1}]"
    own = [name for stage in stages for name in (f"{stage}.pattern{part}", _values_point(model, stage))]
    before = [f"{stage}.heads" for stage in stages if attention_of(model.spec, stage).gate]
    return [*attribution.needed(model), *own, *before]


def _values_point(model: TracedModel, stage: str) -> str:
    """The point with the values that an attention reads, (T, G, V). They may be another block's. Raises InvalidRequest
    if they are no point.
    """
    kind = attention_of(model.spec, stage)
    owner = stage if kind.shared is None else f"blocks.{kind.shared}.attention"
    names = [f"{owner}.{name}" for name in ("v_norm", "v_clip", "v")]
    found = next((name for name in names if name in model.points), None)
    if found is None:
        raise InvalidRequest(
            f"{stage} has no values of each token that can be recorded: its values are latent vectors, or keys"
        )
    return found


def token_contributions(
    model: TracedModel, of: Any, token: int | str | None = None, *, against: int | str | None = None, position: int = -1
) -> TokenContributions:
    """The contributions of tokens to the logit of ``token`` after a position. Takes the arguments of ``attribute``.

    Raises: as ``attribute``; InvalidRequest if the values of an attention cannot be recorded.
    """
    sequence = read(model, of, needed(model))
    found, readout = target(model, sequence, token, against, position)
    reader, direction = (AttributedPosition(model, sequence, found.position), readout.directions[found.position])
    directions = {part.stage: part.direction for part in reader.parts(direction) if not part.is_linear}
    pieces, source_pieces = sequence.pieces[: found.position + 1], sequence.source_pieces
    tokens, source = np.zeros(len(pieces)), np.zeros(len(source_pieces))
    for stage in reader.gathered:
        each = _by_key(model, sequence, reader, stage, directions[stage])
        total = source if stage.endswith(".cross") else tokens
        total += each[: len(total)]
    return TokenContributions(pieces, tokens, source_pieces, source, found.logit)


def _by_key(
    model: TracedModel, sequence: SequenceTrace, reader: AttributedPosition, stage: str, direction: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The contribution of each key (T',) of an attention, through all its heads."""
    kind = attention_of(model.spec, stage)
    columns, _, _ = reader.columns(stage, direction)
    if kind.gate:
        gated, heads = (
            sequence.at(name, reader.at).astype(np.float64).reshape(columns.shape)
            for name in (reader.gathered[stage], f"{stage}.heads")
        )
        columns = columns * np.divide(gated, heads, out=np.zeros_like(gated), where=heads != 0)
    weights = sequence.at(f"{stage}.pattern", reader.at).astype(np.float64)
    values = sequence[_values_point(model, stage)].astype(np.float64)
    count = min(weights.shape[-1], len(values))
    by_group = np.einsum("gnv,kgv->gnk", _grouped(columns, kind), values[:count])
    return np.asarray(np.einsum("gnk,gnk->k", by_group, _grouped(weights[:, :count], kind)), np.float64)


def _grouped(heads: NDArray[np.float64], kind: Attention) -> NDArray[np.float64]:
    return heads.reshape(kind.kv_heads, -1, heads.shape[-1])
