"""The whole pipeline for one prompt, stage by stage, with real numbers. ``pellucid explain`` shows it.

    tokenize → embed → +position → blocks → project → softmax → sample → detokenize

The prompt runs once, with a trace. The explanation is about the last position: the prediction after each layer (logit
lens), the contributions of heads and feed-forwards to the chosen token's logit, the tokens that these heads attend to,
and the effect of each sampler step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.model.positions import Learned, Rotary, Sinusoidal
from pellucid.sample.chain import Draw
from pellucid.sample.token_trace import TokenTrace, likeliest
from pellucid.trace.explanation_report import SHOWN, ReportSource, needed, recorded
from pellucid.trace.lenses import attribution
from pellucid.trace.lenses.attribution import Attribution
from pellucid.trace.lenses.logit_lens import LogitLens, logit_lens
from pellucid.trace.trace import SequenceTrace
from pellucid.trace.traced_model import TracedModel, residual_points
from pellucid.util.checks import whole
from pellucid.util.probabilities import softmax

FIRST_COMPONENTS = 4
MOST_TOP = 50
SHOWN_PATTERNS = 6


class ExplainedModel(TracedModel, Protocol):
    """A loaded model that starts requests; ``llm.LLM`` implements it."""

    @property
    def start(self) -> Callable[..., Any]: ...


@dataclass(frozen=True)
class ExplainedPiece:
    """A token of the prompt: its text, the first components of its embedding, and the embedding's norm."""

    id: int
    text: str
    first: list[float]
    length: float


@dataclass(frozen=True)
class ExplainedHead:
    """An important head: its contribution to the chosen token's logit, and the tokens with the most attention weight.

    ``contribution`` is None without an attribution. ``looked_at`` lists the tokens with their weights.
    """

    layer: int
    head: int
    contribution: float | None
    looked_at: list[tuple[str, float]]


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
    """The explanation of a prompt and of the token that follows it.

    ``position`` has sentences about the effect of the position encoding. ``layers`` is the logit lens at the last
    position. ``attribution`` is None if the model's residual stream is not a sum; ``notes`` then has the reason.
    ``patterns`` (n, T, T) are the attention patterns of the first n heads of ``heads``. ``tokens`` are the generated
    tokens, each with its trace of the sampler chain.
    """

    prompt: str
    pieces: list[ExplainedPiece]
    tokenization: dict[str, Any]
    position: list[str]
    layers: LogitLens
    attribution: Attribution | None
    heads: list[ExplainedHead]
    patterns: NDArray[np.float32]
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
        return {
            "prompt": self.prompt,
            "pieces": [asdict(piece) for piece in self.pieces],
            "tokenization": self.tokenization,
            "position": self.position,
            "layers": self.layers.as_dict(),
            "attribution": None if self.attribution is None else self.attribution.as_dict(),
            "heads": [asdict(head) for head in self.heads],
            "patterns": self.patterns.tolist(),
            "alternatives": [asdict(alternative) for alternative in self.alternatives],
            "tokens": [{"text": text, **asdict(trace)} for text, trace in self.tokens],
            "text": self.text,
            "notes": self.notes,
        }

    def html(self) -> str:
        """Return a report: the page of ``pellucid look`` with this run, as a self-contained HTML file.

        Raises:
            InvalidRequest: the model was closed.
        """
        run = recorded(self.source, self.prompt)
        return replace(run, notes=[*self.notes, *run.notes]).html()

    def _repr_html_(self) -> str:
        from pellucid.trace.explanation_html import sections

        return sections(self)


def explain(
    model: ExplainedModel, prompt: str, *, top: int = 5, heads: int = 8, **options: Any
) -> PromptExplanation:
    """Explain how a model continues a text.

    Args:
        top: number of tokens that are shown of each distribution.
        heads: number of heads that are shown.
        options: options of ``generate``; the default of ``max_new_tokens`` is 1.

    Raises:
        InvalidRequest: the model generates no text, or an argument is out of range; otherwise as ``generate``.
    """
    if not model.spec.generates:
        raise InvalidRequest(
            "an encoder generates no text that could be explained: use pellucid points, or embed"
        )
    if model.spec.encoder:
        raise InvalidRequest(
            "explain shows a text and its next tokens: for an encoder-decoder use pellucid look, or llm.record(...)"
        )
    top, heads = whole("top", top, 1, MOST_TOP), whole("heads", heads, 0, 1000)
    ids = model.tokenizer.encode(prompt)
    last, notes = len(ids) - 1, list[str]()
    names = dict.fromkeys(residual_points(model))
    patterns = [point.name for point in model.points.values() if point.kind == "pattern"]
    try:
        names |= dict.fromkeys(attribution.needed(model))
    except InvalidRequest as refused:
        notes.append(f"no attribution: {refused}")
    names |= dict.fromkeys([*patterns, *_position_points(model)])
    request_options = dict[str, Any](max_new_tokens=1, watch=True) | options
    shown = needed(model, last)
    known = {name.partition("[")[0] for name in shown}
    more = [f"{name}[tokens=:{last + SHOWN}]" for name in names if name not in known]
    with model.trace(*shown, *more) as trace:
        request = model.start(prompt, **request_options)
        outputs = list(request)
    if trace.dropped:
        raise InvalidRequest(
            f"a prompt of {last + 1:,} tokens with {len(outputs):,} generated tokens is too long to be explained: "
            "shorten the prompt"
        )
    sequence = trace.sequences[0]
    draw = outputs[0].draw
    lens = logit_lens(model, sequence, top=top, tokens=[draw.token], positions=[last])
    attributed = None if notes else attribution.attribute(model, sequence, draw.token, position=last)
    ranked = _heads(sequence, patterns, attributed, heads, last)
    answer = request.result()
    return PromptExplanation(
        prompt,
        _pieces(sequence, residual_points(model)[0] if "embed" not in names else "embed", last + 1),
        model.tokenizer.explain(prompt).as_dict(),
        _position(model, sequence, last),
        lens,
        attributed,
        ranked,
        np.stack(
            [
                sequence[f"blocks.{head.layer}.attention.pattern"][head.head, : last + 1, : last + 1]
                for head in ranked[:SHOWN_PATTERNS]
            ]
        )
        if ranked
        else np.empty((0, last + 1, last + 1), np.float32),
        _alternatives(model, draw, top),
        [(output.text, output.trace) for output in outputs],
        answer.text,
        notes,
        ReportSource(
            model,
            sequence,
            answer,
            last,
            [head.layer for head in ranked],
            [repr(edit) for edit in options.get("edits", ())],
            {name: value for name, value in options.items() if _is_plain(value)},
            attributed is not None,
        ),
    )


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _pieces(sequence: SequenceTrace, name: str, count: int) -> list[ExplainedPiece]:
    rows = sequence[name][:count].astype(np.float64)
    return [
        ExplainedPiece(token, piece, row[:FIRST_COMPONENTS].tolist(), float(np.linalg.norm(row)))
        for token, piece, row in zip(sequence.ids, sequence.pieces, rows)
    ]


def _heads(
    sequence: SequenceTrace, patterns: Sequence[str], attributed: Attribution | None, count: int, last: int
) -> list[ExplainedHead]:
    """The heads with the largest contributions to the chosen token's logit, in absolute value.

    Without an attribution, these are the heads with the largest attention weight on a single token.
    """
    explained = []
    if attributed is not None:
        chosen: list[tuple[int, int, float | None]] = [
            (contribution.layer, contribution.head, contribution.value)
            for contribution in attributed.ranked("head")[:count]
            if contribution.layer is not None and contribution.head is not None
        ]
    else:
        sharp = [
            (float(row.max()), int(name.split(".")[1]), head)
            for name in patterns
            for head, row in enumerate(sequence[name][:, last])
        ]
        chosen = [(layer, head, None) for _, layer, head in sorted(sharp, reverse=True)[:count]]
    for layer, head, value in chosen:
        row = sequence[f"blocks.{layer}.attention.pattern"][head, last, : last + 1]
        order = np.argsort(-row, kind="stable")[:3]
        looked = [(sequence.pieces[position], float(row[position])) for position in order]
        explained.append(ExplainedHead(layer, head, value, looked))
    return explained


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
