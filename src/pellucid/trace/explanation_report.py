"""An explanation as HTML: without scripts for notebooks, and as a report with the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pellucid.tokenize.stages.decode import several
from pellucid.trace.lenses.attribution import attribute
from pellucid.trace.lenses.comparison import around
from pellucid.trace.lenses.logit_lens import logit_lens
from pellucid.trace.recorded_run import RecordedRun, identity, shape_of
from pellucid.trace.trace import SequenceTrace
from pellucid.trace.traced_model import TracedModel, residual_points
from pellucid.util.display import bar, escaped, heat, section, shade, table

Explained: TypeAlias = Any
"""A ``PromptExplanation``. This module cannot import the class, because the class's module imports this module."""


def sections(explained: Explained) -> str:
    parts = [_tokens("Tokens and embeddings", "text", explained.pieces)]
    if explained.source_pieces:
        parts.insert(0, _tokens("Source", "source", explained.source_pieces))
    positions = ". ".join(sentence[:1].upper() + sentence[1:] for sentence in explained.position)
    parts += [section("Positions", f"{positions}."), _layers(explained)]
    if explained.attribution is not None:
        parts.append(_attribution(explained.attribution))
    if explained.token_contributions is not None:
        parts.append(_by_token(explained.token_contributions))
    parts += [_heads(explained), _logits(explained), _chain(explained)]
    if explained.notes:
        parts.append(section("Notes", " ".join(explained.notes)))
    return "".join(parts)


def _tokens(title: str, of: str, pieces: list[Any]) -> str:
    rows = [
        [position, piece.text, piece.id, ", ".join(f"{x:+.3f}" for x in piece.first) + " ...", round(piece.length, 3)]
        for position, piece in enumerate(pieces)
    ]
    return section(
        title,
        f"The tokens of the {of}, with the first components and the length of each token's embedding.",
        table(["", "piece", "id", "embedding", "length"], rows),
    )


def _layers(explained: Explained) -> str:
    lens, rows = explained.layers, list[list[Any]]()
    for layer, name in enumerate(lens.layers):
        top = lens.top(layer, 0)
        cells: list[Any] = [(f"{text} {p:.2f}", bar(p)) for text, p in top]
        rows.append([name.removesuffix(".residual"), *cells, round(float(lens.entropy[layer, 0]), 3)])
    names = ["after", *(f"{rank + 1}" for rank in range(lens.ids.shape[-1])), "entropy"]
    return section(
        "Prediction after each layer",
        "The logit lens: the last norm and the output head, applied to the residual stream after each block.",
        table(names, rows),
    )


def _attribution(attribution: Any) -> str:
    largest = max(abs(contribution.value) for contribution in attribution.contributions)
    rows = [[part.name, (round(part.value, 3), shade(part.value, largest))] for part in attribution.ranked()[:15]]
    total = round(attribution.total, 3)
    return section(
        "Contributions to the logit",
        f"The logit of {attribution.token!r} is {attribution.logit:.3f}. The contributions sum to {total}.",
        table(["part", "adds"], rows),
    )


def _by_token(by_token: Any) -> str:
    ranked = by_token.ranked()
    largest = abs(ranked[0].value) or 1.0
    rows = [[one.of, one.position, one.piece, (round(one.value, 3), shade(one.value, largest))] for one in ranked[:15]]
    return section(
        "Contributions of tokens",
        "What each token adds to the logit through the heads that attend to it. All other parts at the last position "
        f"add {by_token.rest:+.3f}.",
        table(["of", "", "piece", "adds"], rows),
    )


def _heads(explained: Explained) -> str:
    rows = [
        [
            head.name,
            "" if head.contribution is None else round(head.contribution, 3),
            *[(f"{text} {weight:.2f}", bar(weight)) for text, weight in head.looked_at],
        ]
        for head in explained.heads
    ]
    pieces = [piece.text for piece in explained.pieces]
    source = [piece.text for piece in explained.source_pieces]
    maps = [
        f"<h3>head {head.name}</h3>"
        + heat(pattern, pieces, source if head.cross else pieces, f"attention of head {head.name}")
        for head, pattern in zip(explained.heads, explained.patterns)
    ]
    return section(
        "The most important heads",
        "Each head's contribution to the logit, and the tokens to which the last token attends most. In a map, a row "
        "is a query and a column is a key.",
        table(["head", "adds", "looks at", "", ""], rows),
        *maps,
    )


def _logits(explained: Explained) -> str:
    rows = [
        [token.text, token.id, round(token.logit, 3), (f"{token.probability:.4f}", bar(token.probability)),
         (f"{token.final_probability:.4f}", bar(token.final_probability))]
        for token in explained.alternatives
    ]  # fmt: skip
    return section(
        "Logits and probabilities",
        "The probabilities of the most likely tokens, in the model's distribution and after the sampler's chain.",
        table(["token", "id", "logit", "model", "chain"], rows),
    )


def _chain(explained: Explained) -> str:
    parts = []
    for text, trace in explained.tokens:
        rows = [
            [
                step.name,
                step.removed,
                step.left,
                f"{step.removed_mass:.4f}",
                f"{step.moved:.4f}",
                f"{step.entropy_after:.3f}",
            ]
            for step in trace.steps
        ]
        choice = "the likeliest" if trace.number is None else f"drawn with {trace.number:.6f}"
        parts.append(
            f"<p>{escaped(text)}: probability {trace.probability:.4f}, rank {trace.rank}, {choice}</p>"
            + (table(["step", "removed", "left", "mass", "moved", "entropy"], rows) if rows else "")
        )
    return section("Sampling", "The effect of each step of the chain, and the sampled token.", *parts)


# The report of an explanation: a recorded run for the page of ``pellucid look`` (``web/bundle.py``).
#
# The run also holds the server's responses to the requests of the page. A report holds only values that the page shows.
# If the page shows only the norm of a vector, the report holds only the norm.

MOST_BYTES = 48 << 20  # maximum bytes of the arrays of a report
SHOWN, MOST_LIKELY, MOST_TEXT = 16, 20, 4000
"""Limits: generated tokens, most likely tokens at each position, characters with an explained tokenization."""
MOST_LENS, TOP, MOST_WORDS, MOST_SEARCHED, NEAR = 160, 3, 24, 24, 10
"""Limits: positions of the logit lens, its most likely tokens at each position, tokens of the map of embeddings, tokens
with a list of neighbours, neighbours in each list."""
WHOLE = ("embed", "position")
CHOICE = ("feedforward.router", "feedforward.experts", "feedforward.expert_weights")
LENGTHS = tuple(
    f"{part}.{kind}" for part in ("attention", "cross", "feedforward", "recurrent") for kind in ("output", "post_norm")
)
ENDS = ("feedforward.hidden", "project.logits")
"""Points that are recorded only at positions where a token is sampled."""


@dataclass(frozen=True)
class ReportSource:
    """The data of a report: the explained run. Token ``last`` is the last token before the generated tokens.

    ``edits`` describes the edits. ``options`` are the options that a file can hold.
    """

    model: TracedModel
    sequence: SequenceTrace
    generation: Any
    """An ``engine.output.Generation``."""
    last: int
    patterns: Sequence[str]
    """The points of the most important patterns, which come first."""
    edits: list[str]
    options: dict[str, Any]
    attributes: bool
    """True if the model's residual stream is a sum, so that logits can be attributed to its parts."""


def _kind(name: str) -> str:
    return name.split(".", 2)[2] if name.startswith("blocks.") else name


def needed(model: TracedModel, last: int, end: int) -> list[str]:
    """The points that the report of a prompt reads, before token ``end``.

    Token ``last`` is the last token before the generated tokens.

    The report has the attention patterns of a source, and no other values of the encoder.
    """
    names = list[str]()
    for name, point in model.points.items():
        kind = _kind(name)
        if point.of_source:
            names += [name] * (point.kind == "pattern")
        elif kind in ENDS:
            names.append(f"{name}[tokens={last}:{end}]")
        elif kind in (*WHOLE, *CHOICE, *LENGTHS) or kind.startswith("position.angles") or point.kind == "pattern":
            names.append(f"{name}[tokens=:{end}]")
    return [*names, "sample.probability"]


def recorded(source: ReportSource, question: str) -> RecordedRun:
    """Return the run for the page, with arrays up to the report's limit, and the responses that the page requests.

    Raises: as the lenses.
    """
    model, generation, sequence = source.model, source.generation, source.sequence
    generated = generation.ids[:SHOWN]
    ids, read = [*sequence.ids[: source.last + 1], *generated], sequence.ids[: source.last + len(generated)]
    arrays, omitted, size = dict[str, NDArray[Any]](), list[str](), 0
    for name, values in _arrays(source):
        if size + values.nbytes > MOST_BYTES:
            omitted.append(name)
            continue
        size += values.nbytes
        arrays[name] = values
    notes = list[str]()
    if len(generated) < len(generation.ids):
        notes.append(f"The report shows the first {len(generated)} of {len(generation.ids):,} generated tokens.")
    if omitted:
        more = "" if len(omitted) == 1 else f" and {len(omitted) - 1:,} more"
        notes.append(
            f"A report holds at most {MOST_BYTES >> 20} MiB of values: {omitted[0]}{more} did not fit. "
            "A file of llm.record has no such limit."
        )
    return RecordedRun(
        model=identity(model.spec),
        prompt=ids[: source.last + 1],
        source=sequence.source_ids,
        source_pieces=sequence.source_pieces,
        ids=list(generated),
        pieces=[model.tokenizer.piece(token) for token in ids],
        characters=[list(group) for group in several(model.tokenizer.characters(ids))],
        text=generation.text if generated == generation.ids else model.tokenizer.decode(generated),
        finish_reason=generation.finish_reason,
        seed=generation.seed,
        options=source.options,
        chain=generation.as_dict()["chain"],
        edits=source.edits,
        shape=shape_of(model.spec, model.plan, min(model.spec.embedding.vocabulary, model.tokenizer.vocab_size)),
        parts={name: {"first": source.last} for name in arrays if _kind(name) in ENDS and source.last},
        question=question,
        answers=[
            ["/look/tokenize", {"text": question[:MOST_TEXT]}, model.tokenizer.explain(question[:MOST_TEXT]).as_dict()],
            *_lens(source, ids, read),
            *(_attributed(source, ids) if source.attributes else ()),
            *_pieces(source),
            *_near(model, ids),
        ],
        notes=notes,
        arrays=arrays,
    )


def _arrays(source: ReportSource) -> Iterator[tuple[str, NDArray[Any]]]:
    sequence, points = source.sequence, source.model.points
    shown = min(SHOWN, len(source.generation.ids))
    count = source.last + shown
    patterns = [name for name, point in points.items() if point.kind == "pattern"]
    residual = set(residual_points(source.model))
    for name, point in points.items():
        kind = _kind(name)
        if point.of_source:
            continue
        if kind in (*WHOLE, *CHOICE) or kind.startswith("position.angles"):
            yield name, sequence[name][:count]
        elif kind in LENGTHS or name in residual:
            rows = sequence[name][:count].astype(np.float64)
            yield name, np.linalg.norm(rows.reshape(len(rows), -1), axis=1).astype(np.float32)
    yield "sample.probability", sequence["sample.probability"][:SHOWN]
    yield from ((name, sequence[name][:shown]) for name in ("project.logits",) if name in points)
    for name in sorted(patterns, key=lambda pattern: pattern not in source.patterns):
        pattern, point = sequence[name], points[name]
        of_text = point.mask is not None and not point.mask.cross and not point.of_source
        yield (name, pattern[:, :count, :count] if of_text else pattern if point.of_source else pattern[:, :count])
    hidden = (name for name, point in points.items() if _kind(name) == ENDS[0] and not point.of_source)
    yield from ((name, sequence[name][:shown]) for name in hidden)


def _lens(source: ReportSource, ids: list[int], read: list[int]) -> Iterator[list[Any]]:
    positions = range(min(MOST_LENS, len(read)))  # every position was recorded
    lens = logit_lens(source.model, source.sequence, top=TOP, positions=positions)
    yield ["/look/lens", {**_read_fields(source, ids[:MOST_LENS]), "top": TOP}, lens.as_dict()]


def _read_fields(source: ReportSource, ids: list[int]) -> dict[str, Any]:
    """The fields of the page's requests for the tokens that the model reads (readFields in ``web/server/data.js``)."""
    if not source.model.spec.encoder:
        return {"prompt": ids}
    return {"prompt": source.sequence.source_ids, "answer": ids[source.last + 1 :]}


def _attributed(source: ReportSource, ids: list[int]) -> Iterator[list[Any]]:
    for position in range(source.last, len(ids) - 1):
        token = ids[position + 1]
        attribution = attribute(source.model, source.sequence, token, position=position)
        fields = {**_read_fields(source, ids[: position + 1]), "token": token}
        yield ["/look/attribution", fields, attribution.as_dict()]


def _pieces(source: ReportSource) -> Iterator[list[Any]]:
    """The texts of the most likely tokens at each position where a token was sampled."""
    piece = source.model.tokenizer.piece
    for row in source.sequence["project.logits"][:, : source.model.tokenizer.vocab_size]:
        ids = np.argsort(-row, kind="stable")[:MOST_LIKELY].tolist()
        yield ["/look/pieces", {"ids": ids}, {"pieces": [piece(token) for token in ids]}]


def _near(model: TracedModel, ids: Sequence[int]) -> Iterator[list[Any]]:
    some = list(dict.fromkeys(ids[:MOST_WORDS]))
    if len(some) > 1:
        yield ["/look/neighbours", {"ids": some, "n": 0}, around(model, some, 0)]
    for token in some[:MOST_SEARCHED]:
        yield ["/look/neighbours", {"ids": [token], "n": NEAR}, around(model, [token], NEAR)]
