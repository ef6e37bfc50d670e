"""POST /look/trace: recorded values of a prompt and its continuation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from pellucid.engine.encoder_input import EncoderInput
from pellucid.engine.request import Request
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.llm import LLM
from pellucid.serve.api import array_body
from pellucid.serve.generation_options import CONTROL, LOGPROBS, OPENAI_DEFAULTS, generation_options
from pellucid.serve.look.edit_fields import edits_of
from pellucid.serve.look.prompt_fields import PromptFields, PromptTokens, prompt_of
from pellucid.serve.look.token_fields import described, source_fields
from pellucid.serve.openai.common_fields import OPENAI_RULES
from pellucid.serve.request_body import BodyRules, BodyType, Fields, RequestBody, TokenId
from pellucid.trace.edits import Edit
from pellucid.trace.row_norms import row_norms
from pellucid.trace.selection import select
from pellucid.trace.trace import Trace
from pellucid.util.checks import whole

MAX_POINTS, MAX_ANSWER = 64, 64 << 20
# Maximum bytes of a trace, before norms and views reduce it.
RECORDED = 16 * MAX_ANSWER
MAX_VIEWS, MAX_POOLED = 16, 4096  # views; rows and columns of a view


class ViewFields(Fields, frozen=True):
    """Fields of a view of an attention pattern. ``rows`` are the first row and the row after the last."""

    title: str
    point: str
    head: Annotated[int, Meta(ge=0)] | None = None
    rows: Annotated[list[TokenId], Meta(min_length=2, max_length=2, title="two rows")] | None = None
    pool: Annotated[int, Meta(ge=1, le=MAX_POOLED)] = MAX_POOLED


class TraceFields(PromptFields, frozen=True, kw_only=True):
    """Fields of /look/trace."""

    points: Sequence[str] = ()
    norms: Sequence[str] = ()
    views: Sequence[ViewFields] = ()


TRACE = BodyType(
    TraceFields,
    BodyRules(
        options=generation_options("watch", "receipt", *LOGPROBS, *CONTROL),
        renamed=OPENAI_RULES.renamed,
        defaults=OPENAI_DEFAULTS,
    ),
)


@dataclass(frozen=True)
class TraceReading:
    """Values of ``points``, and norms of the rows of the points ``norms``, for a prompt and its continuation.

    In an encoder-decoder, ``prompt`` in the answer has the tokens of the decoder, and ``source`` the tokens of the
    source.
    ``views`` are parts of attention patterns, because the complete patterns of a long text are too large to send.
    """

    llm: LLM
    prompt: PromptTokens
    recorded: Sequence[str]
    norm_points: Set[str]
    edits: Sequence[Edit]
    views: Sequence[PatternView]
    returned: Set[str]
    """Points whose values are returned, not only views of them."""
    trace: Trace | None
    groups: Sequence[Request]

    @classmethod
    def of(cls, body: RequestBody[TraceFields], llm: LLM) -> TraceReading:
        """Read a body. Raises InvalidRequest if a field is wrong."""
        fields = body.fields
        prompt, edits = prompt_of(body, llm), edits_of(fields.edits, llm)
        points, norms = checked_names("points", fields.points), checked_names("norms", fields.norms)
        if len(fields.views) > MAX_VIEWS:
            raise InvalidRequest(f"views has {len(fields.views):,} views; the limit is {MAX_VIEWS}")
        views = [PatternView.of(f"views[{at}]", one, llm) for at, one in enumerate(fields.views)]
        options = body.options({"temperature": 0, "max_new_tokens": 1})
        norm_points = {one.name for one in select(llm.points, norms)} - {
            one.name for one in select(llm.points, points)
        }
        recorded = list(dict.fromkeys([*points, *norms, *(view.point for view in views)]))
        returned = {one.name for one in select(llm.points, [*points, *norms])}
        if not llm.spec.generates:
            return cls(llm, prompt, recorded, norm_points, edits, views, returned, None, [])
        with llm.trace(*recorded, budget=RECORDED) as trace:
            groups = [llm.request(prompt.ids, resumed=prompt.answer, edits=edits, **options)]
        return cls(llm, prompt, recorded, norm_points, edits, views, returned, trace, groups)

    def answer(self, name: str, number: str) -> dict[str, Any]:
        """Response body with the arrays. An encoder has no ``groups``, so it runs here.

        Raises:
            InvalidRequest: the arrays are too large.
        """
        llm, trace = self.llm, self.trace
        if trace is None:
            with llm.trace(*self.recorded, budget=RECORDED) as trace:
                llm.encode([EncoderInput(self.prompt.ids)], list(self.edits))
        generation = self.groups[0].results()[0] if self.groups else None
        ids = generation.ids if generation else []
        source, arrays, size = self.prompt.source, dict[str, Any](), 0
        for title, values in self._arrays(trace):
            size += values.nbytes
            if size > MAX_ANSWER:
                raise InvalidRequest(
                    f"points={brief(title)}: the answer is larger than {MAX_ANSWER >> 20} MiB: name fewer points"
                )
            arrays[title] = array_body(values)
        return {
            "model": name,
            "prompt": self.prompt.read,
            "ids": ids,
            **described(llm.tokenizer, [*self.prompt.read, *ids]),
            **({} if source is None else {"source": source_fields(llm.tokenizer, source)}),
            "text": generation.text if generation else "",
            "dropped": trace.dropped,
            "notices": [said for group in self.groups for said in group.unused_edits()],
            "arrays": arrays,
        }

    def _arrays(self, trace: Trace) -> Iterator[tuple[str, NDArray[Any]]]:
        """Titles and arrays of the response."""
        (sequence,) = trace.sequences
        for point in trace:
            if point not in self.returned:
                continue
            values = sequence[point]
            if point in self.norm_points:
                values = row_norms(values)
            yield point, values
        for view in self.views:
            yield view.title, view.select_from(sequence[view.point])


@dataclass(frozen=True)
class PatternView:
    """Part of an attention pattern: some ``heads`` and ``rows``, pooled to at most ``pool`` rows and columns."""

    title: str
    point: str
    heads: slice
    rows: slice
    pool: int

    @classmethod
    def of(cls, name: str, fields: ViewFields, llm: LLM) -> PatternView:
        """Read a view. ``name`` is its place in the request.

        Raises:
            InvalidRequest: a field is wrong.
        """
        point = llm.points.get(fields.point)
        if point is None or point.kind != "pattern":
            raise InvalidRequest(
                f"{name}.point={brief(fields.point)}: must be a pattern, such as blocks.0.attention.pattern"
            )
        heads = slice(None)
        if fields.head is not None:
            at = whole(f"{name}.head", fields.head, 0, point.view.parts - 1)
            heads = slice(at, at + 1)
        first, end = (0, llm.context) if fields.rows is None else fields.rows
        first = whole(f"{name}.rows", first, 0, llm.context)
        rows = slice(first, whole(f"{name}.rows", end, first, llm.context))
        return cls(fields.title, fields.point, heads, rows, fields.pool)

    def select_from(self, patterns: NDArray[np.float32]) -> NDArray[np.float32]:
        """The view's part of patterns (H, T, S)."""
        return pooled(patterns[self.heads, self.rows], self.pool)


def pooled(patterns: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    """Max-pool patterns (H, T, S) in squares of tokens, to at most ``most`` rows and columns."""
    _, rows, columns = patterns.shape
    side = -(-max(rows, columns) // most)
    if side == 1:
        return patterns
    for axis, count in ((1, rows), (2, columns)):
        patterns = np.maximum.reduceat(patterns, np.arange(0, count, side), axis)
    return patterns


def checked_names(field: str, names: Sequence[str]) -> Sequence[str]:
    """The names of points in a field of a request. Raises InvalidRequest if there are too many."""
    if len(names) > MAX_POINTS:
        raise InvalidRequest(f"{field} has {len(names):,} names; the limit is {MAX_POINTS:,}")
    return names
