"""Requests of the page about a prompt: recorded values, lenses, attribution, tokenization, nearest tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.engine.request import Request
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.llm import LLM
from pellucid.serve.api import array_body
from pellucid.serve.body import Body
from pellucid.serve.look.fields import edits_of, no_more, prompt_of
from pellucid.serve.look.tokens import described
from pellucid.trace.edits import EditOf
from pellucid.trace.explanation import MOST_TOP
from pellucid.trace.lenses.attribution import attribute
from pellucid.trace.lenses.attribution import needed as attribution_points
from pellucid.trace.lenses.logit_lens import logit_lens
from pellucid.trace.lenses.logit_lens import needed as lens_points
from pellucid.trace.lenses.neighbours import around
from pellucid.trace.model import read
from pellucid.trace.selection import select
from pellucid.trace.trace import Trace
from pellucid.util.checks import whole

MOST_POINTS, MOST_ANSWER, MOST_TEXT, MOST_IDS = 64, 64 << 20, 4000, 4096
RECORDED = 16 * MOST_ANSWER  # bytes that a trace records before norms and views reduce them
MOST_VIEWS, MOST_POOLED = 16, 4096  # views; rows and columns of a view
MOST_LENS, MOST_SCORES, MOST_ATTRIBUTED = 512, 1 << 26, 2048  # tokens; tokens times the vocabulary; tokens
MOST_SEARCHED, MOST_WORD = 8, 200  # words with a search for neighbours; characters of a word
MOST_WORDS, MOST_NEIGHBOURS = 32, 50


@dataclass(frozen=True)
class TraceReading:
    """Values of ``points``, and the lengths of the rows of ``norms``, for a prompt and its continuation.

    ``views`` are parts of attention patterns: the complete patterns of a long text are too large to send.
    """

    llm: LLM
    prompt: list[int]
    wanted: Sequence[str]
    lengths: Set[str]
    edits: Sequence[EditOf]
    views: Sequence[PatternView]
    kept: Set[str]
    """Points whose values are returned, not only views of them."""
    trace: Trace | None
    groups: Sequence[Request]

    @classmethod
    def of(cls, body: Body, llm: LLM) -> TraceReading:
        """Read a body.

        Raises:
            InvalidRequest: a field is wrong; the message names it.
        """
        prompt, edits = prompt_of(body, llm), edits_of(body, llm)
        points, norms = _names(body, "points"), _names(body, "norms")
        views = [
            PatternView.of(f"views[{at}]", dict(one), llm) for at, one in enumerate(body.objects("views"))
        ]
        if len(views) > MOST_VIEWS:
            raise InvalidRequest(f"views has {len(views):,} views; the limit is {MOST_VIEWS}")
        options = body.options({"temperature": 0, "max_new_tokens": 1})
        lengths = {one.name for one in select(llm.points, norms)} - {
            one.name for one in select(llm.points, points)
        }
        wanted = list(dict.fromkeys([*points, *norms, *(view.point for view in views)]))
        kept = {one.name for one in select(llm.points, [*points, *norms])}
        if not llm.spec.head:
            return cls(llm, prompt, wanted, lengths, edits, views, kept, None, [])
        with llm.trace(*wanted, budget=RECORDED) as trace:
            groups = [llm.request(prompt, edits=edits, **options)]
        return cls(llm, prompt, wanted, lengths, edits, views, kept, trace, groups)

    def answer(self, name: str, number: str) -> dict[str, Any]:
        """Response body with the arrays. An encoder runs now.

        Raises:
            InvalidRequest: the arrays are too large.
        """
        llm, trace = self.llm, self.trace
        if trace is None:
            with llm.trace(*self.wanted, budget=RECORDED) as trace:
                llm.embed_tokens([self.prompt], list(self.edits))
        made = self.groups[0].results()[0] if self.groups else None
        ids = made.ids if made else []
        arrays, size = dict[str, Any](), 0
        for title, values in self._arrays(trace):
            size += values.nbytes
            if size > MOST_ANSWER:
                raise InvalidRequest(
                    f"points={brief(title)}: the answer is larger than {MOST_ANSWER >> 20} MiB: name fewer points"
                )
            arrays[title] = array_body(values)
        return {
            "model": name,
            "prompt": self.prompt,
            "ids": ids,
            **described(llm.tokenizer, [*self.prompt, *ids]),
            "text": made.text if made else "",
            "dropped": trace.dropped,
            "notices": [said for group in self.groups for said in group.unused_edits()],
            "arrays": arrays,
        }

    def _arrays(self, trace: Trace) -> Iterator[tuple[str, NDArray[Any]]]:
        """Titles and arrays of the response."""
        (sequence,) = trace.sequences
        for point in trace:
            if point not in self.kept:
                continue
            values = sequence[point]
            if point in self.lengths:
                flat = values.reshape(len(values), -1).astype(np.float64)
                values = np.sqrt((flat * flat).sum(-1)).astype(np.float32)
            yield point, values
        for view in self.views:
            yield view.title, view.seen(sequence[view.point])


@dataclass(frozen=True)
class PatternView:
    """Part of an attention pattern: some ``heads`` and ``rows``, pooled to at most ``pool`` rows and columns."""

    title: str
    point: str
    heads: slice
    rows: slice
    pool: int

    @classmethod
    def of(cls, name: str, given: dict[str, Any], llm: LLM) -> PatternView:
        """Read a view: {"title", "point"}, and optionally "head", "rows" [first, end] and "pool".

        Raises:
            InvalidRequest: a field is wrong.
        """
        title, point = given.pop("title", None), given.pop("point", None)
        if not isinstance(title, str) or point not in llm.points or llm.points[point].kind != "pattern":
            raise InvalidRequest(
                f"{name}: has a title, and a pattern as its point, such as blocks.0.attention.pattern"
            )
        head, rows, pool = given.pop("head", None), given.pop("rows", None), given.pop("pool", MOST_POOLED)
        heads = slice(None)
        if head is not None:
            at = whole(f"{name}.head", head, 0, llm.points[point].view.parts - 1)
            heads = slice(at, at + 1)
        first, end = (
            (0, llm.context)
            if rows is None
            else rows
            if isinstance(rows, list) and len(rows) == 2
            else (-1, -1)
        )
        if given:
            raise InvalidRequest(f"{name} has {brief(min(given))}, which a view does not take")
        first = whole(f"{name}.rows", first, 0, llm.context)
        end = whole(f"{name}.rows", end, first, llm.context)
        return cls(title, point, heads, slice(first, end), whole(f"{name}.pool", pool, 1, MOST_POOLED))

    def seen(self, patterns: NDArray[np.float32]) -> NDArray[np.float32]:
        """The view's part of patterns (H, T, S)."""
        return pooled(patterns[self.heads, self.rows], self.pool)


def pooled(patterns: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    """Pool patterns (H, T, S) to at most ``most`` rows and columns: the maxima of squares of tokens."""
    _, rows, columns = patterns.shape
    side = -(-max(rows, columns) // most)
    if side == 1:
        return patterns
    for axis, count in ((1, rows), (2, columns)):
        patterns = np.maximum.reduceat(patterns, np.arange(0, count, side), axis)
    return patterns


def _names(body: Body, field: str) -> list[str]:
    found = body.take(field, [])
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise InvalidRequest(f"{field}={brief(found)}: must be a list of names, such as blocks.*.residual")
    if len(found) > MOST_POINTS:
        raise InvalidRequest(f"{field} has {len(found):,} names; the limit is {MOST_POINTS:,}")
    return found


def tokenization(body: Body, llm: LLM) -> dict[str, Any]:
    """Tokenization of a ``text``, stage by stage: ``tokenize/explain.py``."""
    text = body.text("text") or ""
    if len(text) > MOST_TEXT:
        raise InvalidRequest(f"text has {len(text):,} characters; the limit is {MOST_TEXT:,}")
    no_more(body, "a tokenization has text")
    return llm.tokenizer.explain(text).as_dict()


def pieces(body: Body, llm: LLM) -> dict[str, Any]:
    """Texts of tokens."""
    ids = _ids(body.required("ids"), llm, MOST_IDS)
    no_more(body, "it has ids")
    return {"pieces": [llm.tokenizer.piece(token) for token in ids]}


def _ids(given: Any, llm: LLM, most: int) -> list[int]:
    """Check the token ids of a body. They are separate tokens, not a text. Raises InvalidRequest."""
    size = llm.inputs.vocabulary
    if (
        not isinstance(given, list)
        or len(given) > most
        or not all(type(one) is int and 0 <= one < size for one in given)
    ):
        raise InvalidRequest(f"ids={brief(given)}: must be at most {most:,} token ids below {size:,}")
    return given


def attribution(body: Body, llm: LLM) -> dict[str, Any]:
    """Contribution of each part to the logit of ``token`` after ``position``: ``trace/lenses/attribution.py``."""
    prompt, edits = prompt_of(body, llm), _stream_edits(body, llm)
    token, against = body.take("token"), body.take("against")
    position = body.count("position", -len(prompt), len(prompt) - 1)
    no_more(body, "an attribution has prompt, token, against, position and edits")
    _refuse_long(prompt, MOST_ATTRIBUTED)
    at = -1 if position is None else position
    run = read(llm, prompt, attribution_points(llm), edits)
    return attribute(llm, run, token, against=against, position=at).as_dict()


def _refuse_long(prompt: list[int], most: int) -> None:
    if len(prompt) > most:
        raise InvalidRequest(f"prompt has {len(prompt):,} tokens; the limit is {most:,} here")


def lens(body: Body, llm: LLM) -> dict[str, Any]:
    """Logit lens: predictions after each block, at every position: ``trace/lenses/logit_lens.py``."""
    prompt, edits, top = prompt_of(body, llm), _stream_edits(body, llm), body.count("top", 1, MOST_TOP) or 5
    no_more(body, "a lens has prompt, top and edits")
    _refuse_long(prompt, min(MOST_LENS, MOST_SCORES // llm.spec.embedding.vocabulary))
    run = read(llm, prompt, lens_points(llm), edits)
    return logit_lens(llm, run, top=top).as_dict()


def _stream_edits(body: Body, llm: LLM) -> list[EditOf]:
    """The body's edits, for a run that a lens reads.

    Raises:
        InvalidRequest: an edit is wrong, or changes a value after the residual stream, which a lens computes itself.
    """
    edits = edits_of(body, llm)
    for one in select(llm.points, [edit.where for edit in edits]):
        if one.point.rows == "outputs" and llm.spec.head:
            raise InvalidRequest(
                f"edits: a lens goes through the norm and the head as they are: leave out the edit of {one.name}"
            )
    return edits


def near(body: Body, llm: LLM) -> dict[str, Any]:
    """Nearest tokens of ``ids`` (tokens) or ``words`` (texts), the cosines between them, and a map."""
    ids, asked = body.take("ids"), body.count("n", 0, MOST_NEIGHBOURS)
    words: Sequence[str | int] = body.texts("words") if ids is None else _ids(ids, llm, MOST_WORDS)
    count = 8 if asked is None else asked
    no_more(body, "neighbours have ids or words, and n")
    if not 1 <= len(words) <= MOST_WORDS:
        name = "words" if ids is None else "ids"
        raise InvalidRequest(
            f"{name} has {len(words):,} entries; the limit is {MOST_WORDS}, and one at least"
        )
    long = any(isinstance(word, str) and len(word) > MOST_WORD for word in words)
    if long or (count and len(words) > MOST_SEARCHED):
        raise InvalidRequest(
            f"words={brief(words)}: at most {MOST_WORD} characters each, and neighbours of {MOST_SEARCHED} at a time"
        )
    return around(llm, words, count)
