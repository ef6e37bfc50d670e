"""POST /look/trace: recorded values of a prompt and its continuation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from pellucid.engine.encoder_inputs import EncoderInput
from pellucid.engine.request import Request
from pellucid.engine.tasks.encoding import EncodingTask
from pellucid.errors import InvalidRequest, brief
from pellucid.llm import LLM
from pellucid.serve.api import array_body
from pellucid.serve.generation_options import CONTROL, LOGPROBS, OPENAI_DEFAULTS, generation_options
from pellucid.serve.look.prompt_fields import PromptFields, PromptTokens, described, edits_of, prompt_of, source_fields
from pellucid.serve.openai_parts import OPENAI_RULES
from pellucid.serve.request_body import BodyRules, BodyType, Fields, RequestBody, TokenId
from pellucid.trace.frames import row_norms
from pellucid.trace.positions import TokenTexts
from pellucid.trace.selection import select
from pellucid.trace.trace import Trace
from pellucid.util.checks import whole

MAX_POINTS, MAX_ANSWER = 64, 64 << 20
# Maximum bytes of a trace, before norms and views reduce it.
RECORDED = 16 * MAX_ANSWER
MAX_VIEWS, MAX_POOLED = 16, 4096  # views; rows and columns of a view
VALUE_BYTES = 4  # of a float32 or an int32


class ViewFields(Fields, frozen=True):
    """Fields of a view of an attention pattern. ``rows`` are the first row and the row after the last."""

    title: str
    point: str
    head: Annotated[int, Meta(ge=0)] | None = None
    rows: Annotated[list[TokenId], Meta(min_length=2, max_length=2, title="two rows")] | None = None
    pool: Annotated[int, Meta(ge=1, le=MAX_POOLED)] = MAX_POOLED


class TraceFields(PromptFields, frozen=True, kw_only=True):
    """Fields of /look/trace. ``remembered`` takes the answer to an equal request of the same key if there is one."""

    points: Sequence[str] = ()
    norms: Sequence[str] = ()
    remembered: bool = False
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
    norm_points: Set[str]
    views: Sequence[PatternView]
    returned: Set[str]
    """Points whose values are returned, not only views of them."""
    trace: Trace
    groups: Sequence[Request]
    encoding: EncodingTask | None
    """The task of an encoder, which has no ``groups``."""

    @classmethod
    def of(cls, body: RequestBody[TraceFields], llm: LLM) -> TraceReading:
        fields = body.fields
        prompt, edits = prompt_of(body, llm), edits_of(fields.edits, llm)
        points, norms = checked_names("points", fields.points), checked_names("norms", fields.norms)
        if len(fields.views) > MAX_VIEWS:
            raise InvalidRequest(f"views has {len(fields.views):,} views; the limit is {MAX_VIEWS}")
        views = [PatternView.of(f"views[{at}]", one, llm) for at, one in enumerate(fields.views)]
        options = body.options({"temperature": 0, "max_new_tokens": 1})
        norm_points = {one.name for one in select(llm.points, norms)} - {one.name for one in select(llm.points, points)}
        recorded = list(dict.fromkeys([*points, *norms, *(view.point for view in views)]))
        returned = {one.name for one in select(llm.points, [*points, *norms])}
        with llm.trace(*recorded, budget=RECORDED) as trace:
            groups = []
            if llm.spec.generates:
                groups = [llm.request(prompt.ids, resumed=prompt.answer, edits=edits, **options)]
        encoding = None
        if not groups:
            text, watching = EncoderInput(prompt.ids), trace.watching(edits)
            encoding = EncodingTask(llm.engine.cache, llm.spec, [text], watching)
        reading = cls(llm, prompt, norm_points, views, returned, trace, groups, encoding)
        reading._refuse_large()
        return reading

    def answer(self, name: str, number: str) -> dict[str, Any]:
        """Response body with the arrays. An encoder runs here."""
        llm, trace, source = self.llm, self.trace, self.prompt.source
        if self.encoding is not None:
            list(llm.engine.run(self.encoding, llm.scheduling))
        generation = self.groups[0].results()[0] if self.groups else None
        ids = generation.ids if generation else []
        return {
            "model": name,
            "prompt": self.prompt.read,
            "ids": ids,
            **described(llm.tokenizer, [*self.prompt.read, *ids]),
            **({} if source is None else {"source": source_fields(llm.tokenizer, source)}),
            "text": generation.text if generation else "",
            "dropped": trace.dropped,
            "notices": [said for group in self.groups for said in group.unused_edits()],
            "arrays": {title: array_body(values) for title, values in self._arrays()},
        }

    def _arrays(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Titles and arrays of the response."""
        (sequence,) = self.trace.sequences
        for point in self.trace:
            if point not in self.returned:
                continue
            values = sequence[point]
            if point in self.norm_points:
                values = row_norms(values)
            yield point, values
        for view in self.views:
            yield view.title, view.select_from(sequence[view.point])

    def _refuse_large(self) -> None:
        """Refuse a request whose arrays may be too large, before it runs."""
        sizes = {title: VALUE_BYTES * math.prod(shape) for title, shape in self._shapes()}
        if (size := sum(sizes.values())) > MAX_ANSWER:
            largest = max(sizes, key=lambda title: sizes[title])
            raise InvalidRequest(
                f"points={brief(largest)}: the answer may take {size:,} bytes, this point {sizes[largest]:,} of them; "
                f"the limit is {MAX_ANSWER:,}: name fewer points, tokens, heads or dims, or lower max_tokens"
            )

    def _shapes(self) -> Iterator[tuple[str, Sequence[int]]]:
        """Titles and the largest possible shapes of the arrays of the response."""
        prompt, trace, shapes = self.prompt, self.trace, dict[str, Sequence[int]]()
        limit = self.groups[0].limit if self.groups else 1
        tokens = len(prompt.read) + limit - 1  # the last token is not read
        texts = [None if ids is None else TokenTexts(ids, trace.piece) for ids in (prompt.read, prompt.source)]
        for part in trace.selected:
            of_text = texts[1] if part.point.of_source and texts[1] else texts[0]
            assert of_text is not None
            own = part.resolve(of_text, texts[1])
            is_output = part.point.kind == "output"
            shapes[part.name] = (limit, *part.point.sizes) if is_output else own.shape(tokens, len(prompt.source or ()))
        for name, shape in shapes.items():
            if name in self.returned:
                yield name, shape[:1] if name in self.norm_points else shape
        for view in self.views:
            yield view.title, view.shape(shapes[view.point])


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
        """Read a view. ``name`` is its place in the request."""
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
        return pooled(patterns[self.heads, self.rows], self.pool)

    def shape(self, patterns: Sequence[int]) -> Sequence[int]:
        heads, rows = (len(range(size)[own]) for size, own in zip(patterns, (self.heads, self.rows)))
        side = max(1, -(-max(rows, patterns[2]) // self.pool))
        return heads, -(-rows // side), -(-patterns[2] // side)


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
