"""The report of an explanation: a recorded run for the page of ``pellucid look`` (``web/bundle.py``).

The run also holds the server's responses to the requests of the page. A report holds only values that the page shows.
If the page shows only the norm of a vector, the report holds only the norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.tokenize.stages.characters import several
from pellucid.trace.lenses.attribution import attribute
from pellucid.trace.lenses.logit_lens import logit_lens
from pellucid.trace.lenses.neighbours import around
from pellucid.trace.recorded_run import RecordedRun, identity, shape_of
from pellucid.trace.trace import SequenceTrace
from pellucid.trace.traced_model import TracedModel, residual_points

MOST_BYTES = 48 << 20  # maximum bytes of the arrays of a report
SHOWN, MOST_LIKELY, MOST_TEXT = 16, 20, 4000
"""Limits: generated tokens, most likely tokens at each position, characters with an explained tokenization."""
MOST_LENS, TOP, MOST_WORDS, MOST_SEARCHED, NEAR = 160, 3, 24, 24, 10
"""Limits: positions of the logit lens, its most likely tokens at each position, tokens of the map of embeddings, tokens
with a list of neighbours, neighbours in each list."""
WHOLE = ("embed", "position")
CHOICE = ("feedforward.router", "feedforward.experts", "feedforward.expert_weights")
LENGTHS = tuple(
    f"{part}.{kind}"
    for part in ("attention", "cross", "feedforward", "recurrent")
    for kind in ("output", "post_norm")
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
    """A point's name without its block."""
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
        elif (
            kind in (*WHOLE, *CHOICE, *LENGTHS)
            or kind.startswith("position.angles")
            or point.kind == "pattern"
        ):
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
        notes.append(
            f"The report shows the first {len(generated)} of {len(generation.ids):,} generated tokens."
        )
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
        shape=shape_of(
            model.spec, model.plan, min(model.spec.embedding.vocabulary, model.tokenizer.vocab_size)
        ),
        parts={name: {"first": source.last} for name in arrays if _kind(name) in ENDS and source.last},
        question=question,
        answers=[
            [
                "/look/tokenize",
                {"text": question[:MOST_TEXT]},
                model.tokenizer.explain(question[:MOST_TEXT]).as_dict(),
            ],
            *_lens(source, ids, read),
            *(_attributed(source, ids) if source.attributes else ()),
            *_pieces(source),
            *_near(model, ids),
        ],
        notes=notes,
        arrays=arrays,
    )


def _arrays(source: ReportSource) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the arrays of a report, the most important arrays first."""
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
        yield (
            name,
            pattern[:, :count, :count] if of_text else pattern if point.of_source else pattern[:, :count],
        )
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
