"""Tracing of a loaded model: traces and edits (docs/tracing.md)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from pellucid.engine.recorder import EngineRecorder, RequestTracer
from pellucid.engine.request import Request
from pellucid.errors import InvalidRequest, brief
from pellucid.plan.points import Point

if TYPE_CHECKING:
    from pellucid.engine.edited_copies import EditedCopy
    from pellucid.trace.control_vector import RegisteredVectors
    from pellucid.trace.edits import Edit
    from pellucid.trace.frames import TraceFrame, TraceStream
    from pellucid.trace.linear_probe import LinearProbe
    from pellucid.trace.sequence_recorder import SequenceRecorder
    from pellucid.trace.trace import Trace

STREAMED = "probes: a request whose values are streamed takes no probes: leave them out"
BEAMS = "probes: beam search has no scores of tokens: leave them out, or use generate"
DIVIDED = "the model runs on several machines, so its values cannot be watched"
CONTROLS = frozenset(("edits", "steer", "probes"))
"""The options of a request that change or watch values."""


class Tracing:
    """Traces and edits of a model's requests. All clients of the model share one object.

    ``find_points`` returns the points of the model. ``unwatched`` is the reason why its values cannot be traced and
    edited; "" if they can. ``piece`` is the text of a token. The modules of ``trace/`` are imported when a request
    first needs them.
    """

    def __init__(
        self, find_points: Callable[[], dict[str, Point]], unwatched: str, piece: Callable[[int], str]
    ) -> None:
        self._find_points, self.unwatched, self._piece = find_points, unwatched, piece
        self._points: dict[str, Point] = {}
        self._current: ContextVar[Trace | None] = ContextVar("trace", default=None)
        self._vectors: RegisteredVectors | None = None

    @property
    def vectors(self) -> RegisteredVectors:
        """The control vectors and probes that requests may name."""
        from pellucid.trace.control_vector import NO_VECTORS

        return self._vectors or NO_VECTORS

    @vectors.setter
    def vectors(self, vectors: RegisteredVectors) -> None:
        self._vectors = vectors

    @property
    def points(self) -> dict[str, Point]:
        """The values of a run that can be traced and edited, by name, in the order of the pipeline.

        Raises:
            InvalidRequest: the blocks of the model are divided over several machines.
        """
        if self.unwatched:
            raise InvalidRequest(self.unwatched)
        self._points = self._points or self._find_points()
        return self._points

    def watching(
        self, options: dict[str, Any], stream: TraceStream | None = None
    ) -> tuple[RequestTracer | None, Sequence[Edit], Sequence[LinearProbe]]:
        """The recordings, edits and probes of a request. Removes its edits, vectors and probes from ``options``.

        Returns what applies them (None: nothing applies), and the edits of the current trace and of the request, and
        its probes. With a ``stream``, the values go to it.
        """
        trace = self._current.get()
        if trace is None and stream is None and self._vectors is None and not CONTROLS & options.keys():
            return None, (), ()
        from pellucid.trace.request_trace import request_trace, streamed_trace

        own, probes = self.vectors.taken_from(options, lambda: self.points)
        if probes and (stream is not None or (trace is not None and trace.stream is not None)):
            raise InvalidRequest(STREAMED)
        edits = [*(trace.edits if trace is not None else ()), *own]
        if stream is not None:
            return streamed_trace(self.points, stream.selected, own, stream.put, self._piece), edits, probes
        if trace is None:
            return request_trace(lambda: self.points, own, probes, self._piece), edits, probes
        return trace.watching(own, probes), edits, probes

    def tracer(self, edits: Sequence[Edit] | None) -> RequestTracer | None:
        """The tracer of a request with these ``edits`` alone, inside the current trace. None: nothing applies."""
        return self.watching({"edits": edits})[0]

    def edited(
        self, ids: Sequence[int], copies: Sequence[Sequence[Edit]], base: Sequence[Edit]
    ) -> tuple[list[EditedCopy], EngineRecorder | None]:
        """Edited copies of a prompt, each with its edits after the edits ``base`` of the prompt itself.

        Returns the copies, and the recorder of the prompt (None: it has no edits).

        Raises:
            InvalidRequest: an edit does not fit its point or the prompt.
        """
        from pellucid.engine.edited_copies import EditedCopy
        from pellucid.trace.edits import listed
        from pellucid.trace.trace import Trace

        trace = self._current.get()
        outer, piece = [*(trace.edits if trace else ()), *listed(base)], self._piece
        alone, of_prompt = (Trace(self.points, (), edits, piece=piece) for edits in ((), outer))

        def recorder(trace: Trace, edits: Sequence[Edit]) -> SequenceRecorder:
            made = trace.watching(edits).begin(ids, first_output=len(ids) - 1)[0]
            if made.instrumentation.state_edits:
                raise InvalidRequest("sweeps and gradients do not take edits of states: run requests with edits")
            return made

        made = []
        for edits in copies:
            own = recorder(alone, listed(edits))
            both = recorder(of_prompt, edits) if outer else own
            made.append(EditedCopy(both, own.watch, len(ids) if own.first_changed is None else own.first_changed))
        return made, recorder(of_prompt, ()) if outer else None

    @property
    def has_edits(self) -> bool:
        """True if the current trace has edits."""
        trace = self._current.get()
        return trace is not None and bool(trace.edits)

    def refuse_frames(self, why: str) -> None:
        """Refuse a trace with ``on`` for work that cannot be observed while it runs."""
        trace = self._current.get()
        if trace is not None and trace.stream is not None:
            raise InvalidRequest(f"on: {why}: leave `on` out, and read the trace afterwards")

    @contextmanager
    def trace(
        self, *points: str, edits: Sequence[Edit], budget: int, on: Callable[[TraceFrame], object] | None
    ) -> Iterator[Trace]:
        """Record values of all requests inside a ``with`` statement, in the same thread or asyncio task.

            with llm.trace("blocks.*.residual", "blocks.5.attention.pattern[heads=0,3]") as t:
                llm.generate("The capital of France is", max_new_tokens=8)
            t["blocks.5.attention.pattern"]  # (B, H, T, T')

        Args:
            points: names of points, with ``*`` for a part of a name, or selected parts of points
                (``trace/selection.py``).
            edits: changes of values (``trace/edits.py``). For edits of a single request use
                ``generate(..., edits=[...])``.
            budget: maximum size of the trace in bytes.
            on: a function that is called with each ``TraceFrame`` soon after its step, in a separate thread. Frames are
                dropped if the function is too slow (``t.stream.dropped``). The function's errors are raised at the end
                of the ``with`` statement.

        If traces are nested, only the inner trace records, and the edits of both apply.

        Raises:
            InvalidRequest: a name matches no point, or an edit does not fit its point. A request inside the
                ``with`` statement raises the same error if the values of its prompt do not fit into the budget.
        """
        from pellucid.trace.edits import listed
        from pellucid.trace.frames import FrameReader, TraceStream
        from pellucid.trace.trace import Trace

        outer = self._current.get()
        own = [*(outer.edits if outer is not None else ()), *listed(edits)]
        if on is not None and not callable(on):
            raise InvalidRequest(f"on={brief(on)}: must be a function of a frame")
        made = Trace(self.points, points, own, budget, self._piece)
        reader = None
        if on is not None:
            made.stream = TraceStream(self.points, points)
            reader = FrameReader(made.stream, on)
            made.stream.notify = reader.notify
        before = self._current.set(made)
        try:
            yield made
        except BaseException:
            if reader is not None:
                reader.stop()
            raise
        finally:
            with suppress(ValueError):  # the trace ends in another task, where the variable is not set
                self._current.reset(before)
        if reader is not None:
            reader.close()


def warn_unused(*requests: Request, level: int = 4) -> None:
    """Warn about edits that had no effect on the finished requests."""
    warn_all([said for request in requests for said in request.unused_edits()], level)


def warn_all(notices: Sequence[str], level: int = 3) -> None:
    """Issue warnings about unused edits."""
    for said in notices:
        warnings.warn(said, stacklevel=level)


def refuse_late(request: Request, stream: TraceStream) -> None:
    """Refuse a stream of the source's values of a request that has begun. Raises InvalidRequest."""
    if stream.reads_source and request.prompt_read is not None:
        raise InvalidRequest(
            "points: the encoder has read the source of this request: its values can be streamed only from the "
            "beginning of a request"
        )
