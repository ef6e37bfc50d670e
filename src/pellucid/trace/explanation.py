"""The whole pipeline for one prompt, stage by stage, with real numbers. ``pellucid explain`` shows it.

    tokenize → embed → +position → blocks → project → softmax → sample → detokenize

The prompt runs once, with a trace. The explanation is about one generated token, and so about the position before it:
the prediction after each layer (logit lens), the contributions of heads and feed-forwards to the chosen token's logit,
the contributions of the tokens that the heads attend to, and the effect of each sampler step. In an encoder-decoder the
prompt is the source: the heads of cross attention attend to its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.model.positions import Learned, Rotary, Sinusoidal
from pellucid.sample.chain import Draw, TokenTrace, likeliest
from pellucid.trace.explanation_report import SHOWN, ReportSource, needed, recorded, sections
from pellucid.trace.export import json_fields
from pellucid.trace.lenses import attribution
from pellucid.trace.lenses.attribution import Attribution
from pellucid.trace.lenses.heads import TokenContributions, token_contributions
from pellucid.trace.lenses.heads import needed as token_points
from pellucid.trace.lenses.logit_lens import LogitLens, logit_lens
from pellucid.trace.trace import SequenceTrace
from pellucid.trace.traced_model import TracedModel, residual_points
from pellucid.util.checks import whole
from pellucid.util.probabilities import softmax

FIRST_COMPONENTS = 4
MOST_TOP = 50
MOST_STEP = 1 << 20
SHOWN_PATTERNS = 6
MOST_LOOKED_AT = 3
SOURCE_EMBEDDING = "encoder.embed"  # the point with the embeddings of a source's tokens


class ExplainedModel(TracedModel, Protocol):
    """A loaded model that starts requests; ``llm.LLM`` implements it."""

    @property
    def start(self) -> Callable[..., Any]: ...


@dataclass(frozen=True)
class ExplainedPiece:
    """A token that the model reads: its text, the first components of its embedding, and the embedding's norm."""

    id: int
    text: str
    first: list[float]
    length: float


@dataclass(frozen=True)
class ExplainedHead:
    """An important head: its contribution to the chosen token's logit, and the tokens with the most attention weight.

    ``contribution`` is None without an attribution. ``looked_at`` lists the tokens with their weights. A head of
    ``cross`` attention attends to tokens of the source.
    """

    layer: int
    head: int
    contribution: float | None
    looked_at: list[tuple[str, float]]
    cross: bool = False

    @property
    def name(self) -> str:
        """The number of the block and of the head, such as "3.7" or "3.7 cross"."""
        return f"{self.layer}.{self.head}{' cross' if self.cross else ''}"

    @property
    def pattern(self) -> str:
        return f"blocks.{self.layer}.{'cross' if self.cross else 'attention'}.pattern"


@dataclass(frozen=True)
class Alternative:
    """A candidate for the next token: its logit, and its probabilities in the model and after the chain."""

    text: str
    id: int
    logit: float
    probability: float
    final_probability: float


@dataclass(frozen=True, repr=False)
class PromptExplanation:
    """The explanation of a generated token: number ``step`` of the tokens that follow a prompt.

    ``pieces`` are the tokens that the model reads before the explained token: the prompt, or the tokens of the decoder,
    and the earlier generated tokens. ``source_pieces`` are the tokens of the source in an encoder-decoder.
    ``position`` has sentences about the effect of the position encoding. ``layers`` is the logit lens at the last
    position. ``attribution`` is None if the model has several residual streams, and ``token_contributions`` also if
    the values of an attention cannot be recorded; ``notes`` then has the reason. ``patterns`` are the attention
    patterns, (T, T) or (T, S) of cross attention, of the first heads of ``heads``. ``tokens`` are the generated tokens,
    each with its trace of the sampler chain.
    """

    prompt: str
    step: int
    pieces: list[ExplainedPiece]
    source_pieces: list[ExplainedPiece]
    tokenization: dict[str, Any]
    position: list[str]
    layers: LogitLens
    attribution: Attribution | None
    token_contributions: TokenContributions | None
    heads: list[ExplainedHead]
    patterns: list[NDArray[np.float32]]
    alternatives: list[Alternative]
    tokens: list[tuple[str, TokenTrace]]
    text: str
    notes: list[str]
    source: ReportSource = field(repr=False)

    def __repr__(self) -> str:
        size = f"{len(self.pieces)} tokens, {len(self.layers.layers)} layers"
        return f"PromptExplanation({self.prompt!r} → {self.text!r}, {size})"

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dictionary for JSON."""
        names = ("prompt", "step", "pieces", "source_pieces", "tokenization", "position", "layers", "attribution")
        return {
            **json_fields(self, *names, "token_contributions", "heads", "patterns", "alternatives"),
            "tokens": [{"text": text, **asdict(trace)} for text, trace in self.tokens],
            "text": self.text,
            "notes": self.notes,
        }

    def html(self) -> str:
        """Return a report: the page of ``pellucid look`` with this run, as a self-contained HTML file. Raises
        InvalidRequest if the model was closed.
        """
        run = recorded(self.source, self.prompt)
        return replace(run, notes=[*self.notes, *run.notes]).html()

    def _repr_html_(self) -> str:
        return sections(self)


def explain(
    model: ExplainedModel, prompt: str, *, top: int = 5, heads: int = 8, step: int = 1, **options: Any
) -> PromptExplanation:
    """Explain how a model continues a text, or how an encoder-decoder answers a source.

    Args:
        top: number of tokens that are shown of each distribution.
        heads: number of heads that are shown.
        step: the number of the generated token that is explained, from 1.
        options: options of ``generate``; the default of ``max_new_tokens`` is ``step``.

    Raises:
        InvalidRequest: the model generates no text, ends before the token, or an argument is out of range; otherwise as
            ``generate``.
    """
    if not model.spec.generates:
        raise InvalidRequest("an encoder generates no text that could be explained: use pellucid points, or embed")
    top, heads = whole("top", top, 1, MOST_TOP), whole("heads", heads, 0, 1000)
    step = whole("step", step, 1, MOST_STEP)
    first = len(model.spec.start if model.spec.encoder else model.tokenizer.encode(prompt)) - 1
    notes = list[str]()
    of_parts = _needed(attribution.needed, model, "no attribution", notes)
    of_tokens = _needed(token_points, model, "no contributions of tokens", notes)
    with model.trace(*_selected(model, first, step, [*of_parts, *of_tokens])) as trace:
        request = model.start(prompt, **(dict[str, Any](max_new_tokens=step, watch=True) | options))
        outputs = list(request)
    answer = request.result()
    if trace.dropped:
        raise InvalidRequest(
            f"a prompt of {len(trace.sequences[0]):,} tokens with {len(outputs):,} generated tokens is too long to be "
            "explained: shorten the prompt"
        )
    if len(outputs) < step:
        raise InvalidRequest(
            f"step={step}: the model generated only {len(outputs):,} tokens: choose an earlier one, or raise "
            "max_new_tokens"
        )
    sequence, draw, last = trace.sequences[0], outputs[step - 1].draw, first + step - 1
    attributed = attribution.attribute(model, sequence, draw.token, position=last) if of_parts else None
    by_token = None
    if of_tokens:
        by_token = token_contributions(model, sequence, draw.token, position=last)
    ranked = _heads(model, sequence, attributed, heads, last)
    embedding = "embed" if "embed" in model.points else residual_points(model)[0]
    return PromptExplanation(
        prompt,
        step,
        _pieces(sequence, embedding, sequence.ids[: last + 1], sequence.pieces),
        _pieces(sequence, SOURCE_EMBEDDING, sequence.source_ids, sequence.source_pieces),
        model.tokenizer.explain(prompt).as_dict(),
        _position(model, sequence, last),
        logit_lens(model, sequence, top=top, tokens=[draw.token], positions=[last]),
        attributed,
        by_token,
        ranked,
        [
            sequence[head.pattern][head.head, : last + 1, : None if head.cross else last + 1]
            for head in ranked[:SHOWN_PATTERNS]
        ],
        _alternatives(model, draw, top),
        [(output.text, output.trace) for output in outputs],
        answer.text,
        notes,
        ReportSource(
            model,
            sequence,
            answer,
            first,
            list(dict.fromkeys(head.pattern for head in ranked)),
            [repr(edit) for edit in options.get("edits", ())],
            {name: value for name, value in options.items() if isinstance(value, (bool, int, float, str, type(None)))},
            attributed is not None,
        ),
    )


def _needed(
    points: Callable[[TracedModel], list[str]], model: TracedModel, without: str, notes: list[str]
) -> list[str]:
    """The points of a lens. If the lens refuses the model, there are none, and the reason goes to the ``notes``."""
    try:
        return points(model)
    except InvalidRequest as refused:
        notes.append(f"{without}: {refused}")
        return []


def _selected(model: TracedModel, first: int, step: int, names: Sequence[str]) -> list[str]:
    stop = first + max(SHOWN, step)
    shown = needed(model, first, stop)
    patterns = [name for name, point in model.points.items() if point.kind == "pattern"]
    embeddings = [name for name in (SOURCE_EMBEDDING,) if name in model.points]
    known = {name.partition("[")[0] for name in shown}
    more = dict.fromkeys([*residual_points(model), *names, *patterns, *embeddings, *_position_points(model)])
    ranges = {name: "" if model.points[name].of_source else f"[tokens=:{stop}]" for name in more}
    return [*shown, *(f"{name}{ranges[name]}" for name in more if name not in known)]


def _pieces(sequence: SequenceTrace, name: str, ids: Sequence[int], pieces: Sequence[str]) -> list[ExplainedPiece]:
    if not ids:
        return []
    rows = sequence[name][: len(ids)].astype(np.float64)
    return [
        ExplainedPiece(token, piece, row[:FIRST_COMPONENTS].tolist(), float(np.linalg.norm(row)))
        for token, piece, row in zip(ids, pieces, rows)
    ]


def _heads(
    model: TracedModel, sequence: SequenceTrace, attributed: Attribution | None, count: int, last: int
) -> list[ExplainedHead]:
    """The heads with the largest contributions to the chosen token's logit, in absolute value.

    Without an attribution, these are the heads with the largest attention weight on a single token.
    """
    if attributed is not None:
        chosen = [
            ExplainedHead(part.layer, part.head, part.value, [], part.kind == "cross")
            for part in attributed.ranked()
            if part.layer is not None and part.head is not None
        ]
    else:
        patterns = [
            (name.split("."), sequence[name][:, last])
            for name, point in model.points.items()
            if point.kind == "pattern" and not point.of_source
        ]
        sharp = [
            (float(row.max()), int(layer), head, part == "cross")
            for (_, layer, part, _), rows in patterns
            for head, row in enumerate(rows)
        ]
        chosen = [ExplainedHead(layer, head, None, [], cross) for _, layer, head, cross in sorted(sharp, reverse=True)]
    return [replace(head, looked_at=_looked_at(sequence, head, last)) for head in chosen[:count]]


def _looked_at(sequence: SequenceTrace, head: ExplainedHead, last: int) -> list[tuple[str, float]]:
    row = sequence[head.pattern][head.head, last, : None if head.cross else last + 1]
    pieces = sequence.source_pieces if head.cross else sequence.pieces
    order = np.argsort(-row, kind="stable")[:MOST_LOOKED_AT]
    return [(pieces[position], float(row[position])) for position in order]


def _alternatives(model: TracedModel, draw: Draw, top: int) -> list[Alternative]:
    ids, before, after = likeliest(draw, top)
    raw = draw.logits.logits(ids)
    return [
        Alternative(model.tokenizer.piece(int(token)), int(token), float(z), float(p), float(q))
        for token, z, p, q in zip(ids, raw, before, after)
    ]


def _position_points(model: TracedModel) -> list[str]:
    names = ("embed", "position", "blocks.0.attention.q", "blocks.0.attention.q_norm", "blocks.0.attention.q_rotary",
              "blocks.0.attention.k", "blocks.0.attention.k_norm", "blocks.0.attention.k_rotary")  # fmt: skip
    return [name for name in names if name in model.points]


def _position(model: TracedModel, sequence: SequenceTrace, last: int) -> list[str]:
    """Describe the effect of positions on this prompt, in sentences with numbers."""
    spec, sentences = model.spec, list[str]()
    if isinstance(spec.position, (Learned, Sinusoidal)):
        kind = "learned" if isinstance(spec.position, Learned) else "sinusoidal"
        plain = sequence["embed"][last].astype(np.float64)
        added = np.linalg.norm(sequence["position"][last].astype(np.float64) - plain)
        size = added / max(float(np.linalg.norm(plain)), 1e-30)
        sentences.append(
            f"a {kind} vector is added to each embedding; at the last token it is {size:.2f} times as long as the "
            "embedding"
        )
    first = next((attention for attention in spec.attentions), None)
    if first is None:
        return [*sentences, "no attention: the order of the tokens is in the recurrent states"]
    if isinstance(first.rotary, Rotary):
        sentences.append(
            f"queries and keys are rotated: {first.rotary.dims // 2} pairs of each head, the first by 1 radian per "
            f"position, base {first.rotary.base:,.0f}"
        )
        moved = _moved_by_rotation(model, sequence, last)
        if moved is not None:
            sentences.append(
                f"without the rotation {moved:.0%} of the last token's attention in block 0 would go to other tokens"
            )
    if first.relative:
        sentences.append(
            f"each head adds a learned bias to a score, by the distance of query and key, in {first.relative.count} "
            "buckets"
        )
    if first.alibi:
        sentences.append("scores fall with the distance (ALiBi), at a different rate in each head")
    return sentences or ["no position encoding: only the causal mask gives the order of the tokens"]


def _moved_by_rotation(model: TracedModel, sequence: SequenceTrace, last: int) -> float | None:
    """The total variation distance between block 0's attention at the last position with and without rotation."""
    prefix, attention = "blocks.0.attention", model.spec.blocks[0].attention
    if attention is None or attention.latent or f"{prefix}.pattern" not in model.points or attention.softcap:
        return None
    vectors = {}
    for name in ("q", "k"):
        kind = f"{prefix}.{name}_norm" if f"{prefix}.{name}_norm" in model.points else f"{prefix}.{name}"
        vectors[name] = sequence[kind][: last + 1].astype(np.float64)
    q, k = vectors["q"][last], vectors["k"]
    if q.ndim != 2 or k.ndim != 3:
        return None
    keys = np.repeat(k, len(q) // k.shape[1], 1)
    scores = np.einsum("hk,thk->ht", q, keys) * attention.scale
    if attention.window:
        scores[:, : max(0, last - attention.window + 1)] = -np.inf
    plain = np.array([softmax(row) for row in scores])
    return float(np.abs(plain - sequence[f"{prefix}.pattern"][:, last, : last + 1]).sum(-1).mean() / 2)
