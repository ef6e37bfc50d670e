"""POST /look/generate: generated text token by token, with probabilities and values of points."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from operator import itemgetter
from typing import Annotated, Any, NamedTuple

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from pellucid.base_llm import BaseLLM
from pellucid.engine.output import Generation
from pellucid.engine.request import Request
from pellucid.errors import InvalidRequest, brief
from pellucid.plan.points import Point
from pellucid.sample.logprobs import TokenLogprobs
from pellucid.serve.api import Events, array_body
from pellucid.serve.generation_options import CONTROL, OPENAI_DEFAULTS, generation_options
from pellucid.serve.look import prompt_fields as prompts
from pellucid.serve.look.trace_reading import checked_names
from pellucid.serve.openai_parts import OPENAI_RULES, usage
from pellucid.serve.request_body import BodyRules, BodyType, RequestBody
from pellucid.serve.routes import StreamedToken, Tokens, Unparsed
from pellucid.tokenize.stages.decode import CharacterGrouper
from pellucid.trace.frames import NormFrame, TraceStream
from pellucid.trace.selection import Selection, by_name
from pellucid.util.probabilities import exponentials

# Values of a running request for its own stream: the events "values" of /look/generate.

MAX_TOKEN = 1 << 20
"""Maximum bytes of the values of one token."""
MAX_SOURCE = 16 << 20
"""Maximum bytes of the values of all tokens of a source."""


class StreamedValues:
    """The values of a request's points, as events for the positions before a token.

    An event is {"type": "values", "first", "arrays", "norms"}: arrays by point name, as in /look/trace, for consecutive
    positions from ``first`` on: (n, ...), patterns and scores (H, n, T') with the keys up to the last position, or with
    all tokens of the source in cross attention. The
    norms are one array (n, points) with a column for each name in ``norms``, because a model has hundreds of such
    points; NaN stands for what was not recorded. All recorded positions are computed, also those in the prefix cache.

    Values of an encoder-decoder's encoder come once, before the first token. Their events have "source": true, and
    positions of the source.

    ``prompt`` is the number of tokens of the prompt. Rows of draft tokens are held back until their tokens are
    accepted. If the stream drops blocks because the reader is too slow, held rows are dropped too: the values of
    rejected drafts could otherwise stay.
    """

    def __init__(self, stream: TraceStream, prompt: int) -> None:
        self.stream, self.prompt, self._dropped = stream, prompt, 0
        self.norms = [part.name for part in stream.norms]
        """Names of the columns of the events' norms."""
        self._columns = {part: column for column, part in enumerate(stream.norms)}
        self._held: dict[str | int, _HeldRows] = {}

    @classmethod
    def of(
        cls,
        llm: BaseLLM[Any],
        prompt: prompts.PromptTokens,
        points: Sequence[str],
        norms: Sequence[str],
        options: dict[str, Any],
    ) -> tuple[Request, StreamedValues]:
        """Make a request with values."""
        points, norms = checked_names("points", points), checked_names("norms", norms)
        request, stream = llm.request_with_values(prompt.ids, points, norms, resumed=prompt.answer, **options)
        by_name(stream.selected)  # two parts of a point would have one name in an event
        length = len(prompt.read) + llm.inputs.answer_limit(prompt.read, request.options.max_new_tokens)
        source = len(prompt.source or ())
        sizes = {False: 0, True: 0}
        for part in stream.selected:
            own = 4 if part in stream.norms else _bytes_of(part, length, source)
            sizes[part.point.of_source] += own
        if max(sizes.values()) > MAX_TOKEN:
            raise InvalidRequest(
                f"points={brief(list(points))}: the values of a token take up to {max(sizes.values()):,} bytes; the "
                f"limit is {MAX_TOKEN:,}: name fewer points, heads or dims"
            )
        if (size := source * sizes[True]) > MAX_SOURCE:
            raise InvalidRequest(
                f"points={brief(list(points))}: the values of the source take {size:,} bytes; the limit is "
                f"{MAX_SOURCE:,}: name fewer points, heads or dims"
            )
        return request, cls(stream, len(prompt.read))

    def events(self, stop: int) -> list[dict[str, Any]]:
        """The events of the values that have arrived, of positions below ``stop``, and of all values of the source."""
        for block in self.stream.blocks():
            if isinstance(block, NormFrame) and block.whole:
                self._norm_rows(id(block.selected), block.selected).hold(block.positions, block.norms)
                continue
            for frame in block.frames() if isinstance(block, NormFrame) else [block]:
                name, values = frame.selected.name, frame.values
                if frame.selected in self._columns:
                    self._norm_rows(name, [frame.selected]).hold(frame.positions, values[:, None])
                else:
                    self._rows(name, frame.selected).hold(frame.positions, values)
        if self.stream.dropped > self._dropped:
            self._dropped = self.stream.dropped
            for rows in self._held.values():
                if not rows.of_source:
                    rows.drop_drafts(self.prompt)
        events: dict[tuple[bool, int, int], dict[str, Any]] = {}
        norms: dict[tuple[bool, int, int], NDArray[np.float32]] = {}
        for rows in self._held.values():
            for first, values in rows.take(sys.maxsize if rows.of_source else stop):
                place = not rows.of_source, first, rows.sent  # the source comes first
                source = {"source": True} if rows.of_source else {}
                event = events.setdefault(place, {"type": "values", **source, "first": first, "arrays": {}})
                if rows.columns:
                    if place not in norms:
                        norms[place] = np.full((len(values), len(self.norms)), np.nan, np.float32)
                    norms[place][:, rows.columns] = values
                else:
                    event["arrays"][rows.name] = array_body(values)
        for place, values in norms.items():
            events[place]["norms"] = array_body(values)
        return [event for _, event in sorted(events.items(), key=itemgetter(0))]

    def _rows(self, name: str, selected: Selection) -> _HeldRows:
        if (rows := self._held.get(name)) is None:
            rows = self._held[name] = _HeldRows(name, selected, of_source=selected.point.of_source)
        return rows

    def _norm_rows(self, key: str | int, selected: Sequence[Selection]) -> _HeldRows:
        if (rows := self._held.get(key)) is None:
            of_source = selected[0].point.of_source
            columns = [self._columns[part] for part in selected]
            rows = self._held[key] = _HeldRows(columns=columns, of_source=of_source)
        return rows

    async def of_prompt(self, first: asyncio.Future[Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the events of the prompt's values as they arrive, until the ``first`` token is there."""
        loop, ready = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(ready.set)

        self.stream.notify = notify
        while not first.done():
            for event in self.events(self.prompt):
                yield event
            waiter = asyncio.ensure_future(ready.wait())
            await asyncio.wait({first, waiter}, return_when=asyncio.FIRST_COMPLETED)
            waiter.cancel()
            ready.clear()
        self.stream.notify = lambda: None

    def end(self) -> list[dict[str, Any]]:
        """The event "dropped" if blocks of values were dropped. Ends the stream."""
        dropped = self.stream.dropped
        self.stream.close()
        return [{"type": "dropped", "frames": dropped}] if dropped else []


class _Rows(NamedTuple):
    """Values at ``positions``. They are ``final`` if they belong to no draft token."""

    positions: range
    values: NDArray[Any]
    final: bool


class _HeldRows:
    """The rows of the part ``selected`` of the point ``name``, or the norms of several, which wait for their tokens.

    ``columns`` are the columns of norms in the array of all norms. ``of_source``: the rows are tokens of the source,
    which wait for no token. ``sent`` is the end of the positions that have been taken.
    """

    def __init__(
        self, name: str = "", selected: Selection | None = None, columns: Sequence[int] = (), of_source: bool = False
    ) -> None:
        self.name, self.columns, self.of_source = name, columns, of_source
        self._is_pattern = selected is not None and selected.point.kind in ("pattern", "scores")
        self._has_all_keys = of_source or (selected is not None and _is_cross(selected))
        self._held: list[_Rows] = []
        self.sent = 0

    def hold(self, positions: range, values: NDArray[Any]) -> None:
        """Hold rows. They replace earlier rows of their positions: those were rejected drafts, or are read again."""
        held, start = self._held, positions.start
        while held and held[-1].positions.stop > start:
            old = held.pop()
            if old.positions.start < start:
                kept = range(old.positions.start, start)
                held.append(_Rows(kept, old.values[: len(kept)], True))
        held.append(_Rows(positions, values, len(positions) == 1))

    def drop_drafts(self, prompt: int) -> None:
        """Drop rows that may belong to draft tokens after a prompt of ``prompt`` tokens."""
        self._held = [rows for rows in self._held if rows.final or rows.positions.stop <= prompt]

    def take(self, stop: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """Take the rows below ``stop``. Yields runs of rows that have not been taken, with their first position."""
        while self._held and self._held[0].positions.start < stop:
            positions, values, _ = self._held.pop(0)
            end, start = min(positions.stop, stop), positions.start
            if end < positions.stop:
                self._held.insert(0, _Rows(range(end, positions.stop), values[end - start :], False))
            first = max(start, self.sent)
            if first < end:
                self.sent = end
                values = values[first - start : end - start]
                if self._is_pattern and not self._has_all_keys:
                    values = values[:, :, :end]
                yield first, values.swapaxes(0, 1) if self._is_pattern else values


def _is_cross(part: Selection) -> bool:
    """True for the patterns and scores of cross attention, whose keys are the tokens of the source."""
    return part.point.mask is not None and part.point.mask.cross


def _bytes_of(part: Selection, length: int, source: int) -> int:
    """The bytes of a token's values of a part, in a text of ``length`` tokens with a source of ``source`` tokens."""
    point: Point = part.point
    if point.kind in ("pattern", "scores"):
        return 4 * len(part.heads) * (source if point.of_source or _is_cross(part) else length)
    return 4 * len(part.heads) * (point.view.count if part.dims is None else len(part.dims))


async def with_values(
    outputs: Tokens, values: StreamedValues | None
) -> AsyncGenerator[tuple[list[dict[str, Any]], StreamedToken | None], None]:
    """The tokens of a request, each with the events of the values that led to it. Others are events without a token."""
    if values is None:
        async for output in outputs:
            yield [], output
        return
    first: asyncio.Future[StreamedToken | None] = asyncio.ensure_future(anext(outputs, None))
    try:
        async for event in values.of_prompt(first):
            yield [event], None
        token, count = await first, 0
        while token is not None:
            yield values.events(values.prompt + count), token
            token, count = await anext(outputs, None), count + 1
        if events := values.end():
            yield events, None
    finally:
        values.stream.close()
        if not first.done():  # the client has gone: the outputs can be closed only once nobody waits for them
            first.cancel()
            with suppress(asyncio.CancelledError):
                await first


# POST /look/generate: generated text, token by token, with the probabilities of the token and its alternatives.
#
# ``probability`` is a token's probability in the model's distribution, ``final_probability`` its probability after the
# sampler chain.

DEFAULT_TOKENS = 64


class LookGenerateFields(prompts.PromptFields, frozen=True, kw_only=True):
    """Fields of /look/generate. ``points``, ``norms`` and ``remembered`` are those of /look/trace."""

    points: Sequence[str] = ()
    norms: Sequence[str] = ()
    remembered: bool = False
    alternatives: Annotated[int, Meta(ge=0, le=40)] = 8
    stream: bool = True


LOOK_GENERATE = BodyType(
    LookGenerateFields,
    BodyRules(
        options=generation_options("watch", "receipt", "logprobs", "prompt_logprobs", *CONTROL),
        renamed=OPENAI_RULES.renamed,
        defaults=OPENAI_DEFAULTS,
    ),
)


@dataclass(frozen=True)
class LookGeneration(Unparsed):
    """A request for one text. The answer is a list of events: "prompt", "token" and "end".

    With ``values`` it has also "values", before the token that they lead to, and "dropped"
    (`StreamedValues`). The event "prompt" then names the columns of their norms. In an encoder-decoder, the
    event "prompt" has the tokens of the decoder, and ``source`` the tokens of the source.
    """

    llm: BaseLLM[Any]
    groups: Sequence[Request]
    values: StreamedValues | None
    prompt: prompts.PromptTokens

    @classmethod
    def of(cls, body: RequestBody[LookGenerateFields], llm: BaseLLM[Any]) -> LookGeneration:
        prompt, edits = prompts.prompt_of(body, llm), prompts.edits_of(body.fields.edits, llm)
        options = {"max_new_tokens": DEFAULT_TOKENS, **body.options(llm.recommended)}
        options["logprobs"] = body.fields.alternatives
        options.setdefault("logprobs_of", "both")
        points, norms, options["edits"] = body.fields.points, body.fields.norms, edits
        if not points and not norms:
            return cls(llm, [llm.request(prompt.ids, resumed=prompt.answer, **options)], None, prompt)
        request, values = StreamedValues.of(llm, prompt, points, norms, options)
        return cls(llm, [request], values, prompt)

    def answer(self, name: str, number: str) -> dict[str, Any]:
        (group,) = self.groups
        (generation,) = group.results()
        builder, grouper = group.outputs[0], self._grouper()
        made_of = zip(builder.logprobs, builder.texts, builder.times)
        events = [self._prompt()]
        for count, one in enumerate(made_of):
            if self.values is not None:
                events += self.values.events(len(self.prompt.read) + count)
            events.append(self._token(*one, grouper))
        if self.values is not None:
            events += self.values.end()
        return {"id": number, "model": name, "events": [*events, self._end(generation)]}

    async def stream(self, name: str, number: str, tokens: Tokens) -> Events:
        (group,) = self.groups
        yield {**self._prompt(), "id": number, "model": name}
        grouper = self._grouper()
        times = iter(group.outputs[0].times)  # appended before the token is streamed
        async with aclosing(with_values(tokens, self.values)) as items:
            async for events, token in items:
                if token is not None:
                    assert token.output.logprobs is not None
                    events.append(self._token(token.output.logprobs, token.output.text, next(times), grouper))
                yield events[0] if len(events) == 1 else {"events": events}
        yield self._end(group.result())

    def _prompt(self) -> dict[str, Any]:
        norms = {"norms": self.values.norms} if self.values is not None and self.values.norms else {}
        return {"type": "prompt", **prompts.prompt_fields(self.llm.tokenizer, self.prompt), **norms}

    def _grouper(self) -> CharacterGrouper:
        """A grouper that has read the prompt."""
        grouper = self.llm.tokenizer.grouper()
        for token in self.prompt.read:
            grouper.push(token)
        return grouper

    def _token(self, logprobs: TokenLogprobs, text: str, seconds: float, grouper: CharacterGrouper) -> dict[str, Any]:
        tokenizer = self.llm.tokenizer
        ids = logprobs.top_ids.tolist()
        others = [
            {**prompts.token_fields(tokenizer, token, grouper.then(token)), "probability": p}
            for token, p in zip(ids, exponentials(logprobs.top).tolist())
        ]
        if logprobs.final is not None:
            finals = exponentials(logprobs.final).tolist()
            if self.groups[0].outputs[0].chain.greedy:  # the token that has the highest logit is certain
                finals = [float(token == logprobs.id) for token in ids]
            others = [{**one, "final_probability": p} for one, p in zip(others, finals)]
        return {
            "type": "token",
            **prompts.token_fields(tokenizer, logprobs.id, grouper.push(logprobs.id)),
            "text": text,
            "probability": math.exp(logprobs.chosen),
            "rank": logprobs.rank,
            "seconds": seconds,
            "alternatives": others,
        }

    def _end(self, generation: Generation) -> dict[str, Any]:
        seed = None if generation.seed is None else str(generation.seed)  # too large for a JavaScript number
        return {
            "type": "end",
            "finish_reason": generation.finish_reason,
            "seed": seed,
            "usage": usage([generation]),
            "notices": self.groups[0].unused_edits(),
            "seconds": generation.timings.total,
        }
