"""The recordings, edits and linear probes of one request, which make the recorders of its sequences."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pellucid.errors import InvalidRequest, brief
from pellucid.plan.points import Point
from pellucid.trace.budget import ReservedBytes, TraceBudget
from pellucid.trace.edit_reach import never_recorded, refuse_empty
from pellucid.trace.edits import Edit
from pellucid.trace.instrumentation import Instrumentation
from pellucid.trace.linear_probe import LinearProbe
from pellucid.trace.positions import TokenTexts
from pellucid.trace.selection import Selection, select
from pellucid.trace.sequence_recorder import SequenceRecorder


class RequestTrace:
    """The recordings and edits of one request. Implements the engine's ``RequestTracer``.

    ``keep`` gets the recorder of each sequence. Without a ``budget`` the recorders keep no values, but pass them on
    (``SequenceRecorder.stream_to``). ``probes`` score tokens.
    """

    def __init__(
        self,
        points: Mapping[str, Point],
        selected: Sequence[Selection],
        edits: Sequence[tuple[Selection, Edit]],
        budget: TraceBudget | None,
        keep: Callable[[SequenceRecorder], None],
        piece: Callable[[int], str],
        probes: Sequence[LinearProbe] = (),
    ) -> None:
        self._scored = [(probe, probe.part(points)) for probe in probes]
        recorded = [*selected, *(part for _, part in self._scored)]
        self._instrumentation, self._source = (
            Instrumentation(
                [part for part in recorded if part.point.of_source is of_source],
                [(part, edit) for part, edit in edits if part.point.of_source is of_source],
                points,
            )
            for of_source in (False, True)
        )
        self._budget, self.keep, self._piece = budget, keep, piece

    @property
    def watches_chain(self) -> bool:
        return self._instrumentation.watches_chain

    def unused(self, count: int) -> list[str]:
        sentences = (reach.unused(count) for reach in self._instrumentation.reaches)
        recorded = (never_recorded(part, count) for part in self._instrumentation.selected)
        return [sentence for sentence in (*sentences, *recorded) if sentence]

    @property
    def first_output(self) -> int | None:
        return self._instrumentation.first_output

    def begin_source(self, ids: Sequence[int]) -> SequenceRecorder:
        own = self._source.resolve(TokenTexts(ids, self._piece), None)
        for reach in own.reaches:
            reach.refuse(len(ids), len(ids), 0)
        for part in own.selected:
            refuse_empty(part, len(ids), len(ids))
        recorder = SequenceRecorder(
            own, self._budget, self._reserved(own, len(ids)), prompt=len(ids), piece=self._piece
        )
        recorder.tokens = lambda: ids
        return recorder

    def begin(
        self,
        ids: Sequence[int],
        count: int = 1,
        parent: SequenceRecorder | None = None,
        *,
        most: int | None = None,
        first_output: int = 0,
        source: SequenceRecorder | None = None,
    ) -> list[SequenceRecorder]:
        if parent is not None:
            own = parent.instrumentation
        else:
            of_source = None if source is None else TokenTexts(source.tokens(), self._piece)
            own = self._instrumentation.resolve(TokenTexts(ids, self._piece), of_source)
            tokens, last = (None if of_source is None else len(of_source.ids), len(ids) if most is None else most)
            for reach in own.reaches:
                reach.refuse(len(ids), last, first_output, tokens)
            for part in own.selected:
                refuse_empty(part, len(ids), last, tokens)
        reserved, state = self._reserved(own, len(ids)), dict[Any, Any]()
        recorders = []
        for number in range(count):
            recorder = SequenceRecorder(
                own, self._budget, reserved, source, number=number, prompt=len(ids), state=state, piece=self._piece
            )
            recorder.scored = self._scored
            recorders.append(recorder)
            if parent is not None:
                recorder.follow(parent)
        return recorders

    def _reserved(self, instrumentation: Instrumentation, tokens: int) -> ReservedBytes | None:
        if self._budget is None:
            return None
        needed = instrumentation.bytes_for(tokens)
        reserved = self._budget.reserve(needed)
        if isinstance(reserved, int):
            raise InvalidRequest(
                f"budget={self._budget.most:,}: a trace of {tokens:,} tokens takes {needed:,} bytes, but only "
                f"{reserved:,} are free: trace fewer points, heads or tokens, or give a larger budget"
            )
        return reserved


def request_trace(
    points: Callable[[], Mapping[str, Point]],
    edits: Sequence[Edit],
    probes: Sequence[LinearProbe],
    piece: Callable[[int], str],
) -> RequestTrace | None:
    """The trace of a request that is in no other trace; None if it has neither edits nor probes.

    Raises:
        InvalidRequest: an edit or a probe does not fit its point.
    """
    if not edits and not probes:
        return None
    own = points()
    return RequestTrace(own, (), bound_edits(own, edits), None, lambda probe: None, piece, probes)


def streamed_trace(
    points: Mapping[str, Point],
    selected: Sequence[Selection],
    edits: Sequence[Edit],
    put: Callable[..., object],
    piece: Callable[[int], str] = str,
) -> RequestTrace:
    """The trace of a request whose values go to ``put``, as to ``TraceStream.put``, and are not kept.

    Raises:
        InvalidRequest: an edit does not fit its point.
    """
    numbers = itertools.count()

    def keep(recorder: SequenceRecorder) -> None:
        stream_to(put, next(numbers), recorder)

    return RequestTrace(points, selected, bound_edits(points, edits), None, keep, piece)


def stream_to(put: Callable[..., object], number: int, recorder: SequenceRecorder) -> None:
    """Pass the values of sequence ``number`` to ``put``, and of its source if it is the first sequence to read it."""
    recorder.stream_to(partial(put, number))
    if recorder.source is not None:
        recorder.source.stream_to(partial(put, number, of_source=True))


def bound_edits(points: Mapping[str, Point], edits: Sequence[Edit]) -> list[tuple[Selection, Edit]]:
    """Return a pair (part, edit) for each part that an edit changes.

    Raises:
        InvalidRequest: an entry of ``edits`` is not an edit, or an edit selects no point.
    """
    for edit in edits:
        if not isinstance(edit, Edit):
            raise InvalidRequest(f"edit={brief(edit)}: must be made by ablate, scale, add, replace or call")
    return [(part, edit) for edit in edits for part in select(points, [edit.where])]
