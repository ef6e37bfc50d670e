"""Tracing of a loaded model: traces and edits (docs/tracing.md)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pellucid.engine.engine import Engine
from pellucid.engine.job import SchedulingOptions
from pellucid.engine.local_request import LocalRequest
from pellucid.engine.probe import EngineProbe, RequestTracer
from pellucid.engine.request import Request
from pellucid.engine.task import ReadingTask
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.plan.points import Point
from pellucid.tokenize import Tokenizer

if TYPE_CHECKING:
    from pellucid.engine.edited_copies import EditedCopy
    from pellucid.trace.backward.reverse_walk import Tape, TapeNeeds, Versions
    from pellucid.trace.control_vector import Control, RegisteredVectors
    from pellucid.trace.edits import Edit
    from pellucid.trace.frames import TraceFrame, TraceStream
    from pellucid.trace.sequence_probe import SequenceProbe
    from pellucid.trace.trace import Trace

PROJECTED_ROWS = 64
"""Maximum number of vectors that are projected between two steps."""
STREAMED = "probes: a request whose values are streamed takes no probes: leave them out"
BEAMS = "probes: beam search has no scores of tokens: leave them out, or use generate"
DIVIDED = "the model runs on several machines, so its values cannot be watched"
CONTROLS = frozenset(("edits", "steer", "probes"))
"""The options of a request that change or watch values."""


class Tracing:
    """Traces and edits of a model's requests. All clients of the model share one object.

    The modules of ``trace/`` are imported when a request first needs them.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self._engine, self._runner, self._tokenizer = engine, engine.runner, tokenizer
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
    def unwatched(self) -> str:
        """The reason why values of the model cannot be traced and edited; "" if they can."""
        return DIVIDED if self._runner.stage else ""

    @property
    def points(self) -> dict[str, Point]:
        """The values of a run that can be traced and edited, by name, in the order of the pipeline.

        Raises:
            InvalidRequest: the blocks of the model are divided over several machines.
        """
        if self.unwatched:
            raise InvalidRequest(self.unwatched)
        if not self._points:
            from pellucid.trace.output_points import all_points

            self._points = all_points(self._runner.plan, generates=self._runner.spec.generates)
        return self._points

    def watching(self, options: dict[str, Any], stream: TraceStream | None = None) -> RequestTracer | None:
        """The recordings, edits and probes of a request. Removes its edits, vectors and probes from ``options``.

        With a ``stream``, the values go to it.
        """
        trace = self._current.get()
        if trace is None and stream is None and self._vectors is None and not CONTROLS & options.keys():
            return None
        from pellucid.trace.request_trace import request_trace, streamed_trace

        own, probes = self.vectors.taken_from(options, lambda: self.points)
        if probes and (stream is not None or (trace is not None and trace.stream is not None)):
            raise InvalidRequest(STREAMED)
        if stream is not None:
            return streamed_trace(self.points, stream.selected, own, stream.put, self._tokenizer.piece)
        if trace is None:
            return request_trace(lambda: self.points, own, probes, self._tokenizer.piece)
        return trace.watching(own, probes)

    def edited(
        self, ids: Sequence[int], copies: Sequence[Sequence[Edit]], base: Sequence[Edit]
    ) -> tuple[list[EditedCopy], EngineProbe | None]:
        """Edited copies of a prompt, each with its edits after the edits ``base`` of the prompt itself.

        Returns the copies, and the probe of the prompt (None: it has no edits).

        Raises:
            InvalidRequest: an edit does not fit its point or the prompt.
        """
        from pellucid.engine.edited_copies import EditedCopy
        from pellucid.trace.edits import listed
        from pellucid.trace.trace import Trace

        trace = self._current.get()
        outer, piece = [*(trace.edits if trace else ()), *listed(base)], self._tokenizer.piece
        alone, of_prompt = (Trace(self.points, (), edits, piece=piece) for edits in ((), outer))

        def probe(trace: Trace, edits: Sequence[Edit]) -> SequenceProbe:
            made = trace.watching(edits).begin(ids, first_output=len(ids) - 1)[0]
            if made.instrumentation.state_edits:
                raise InvalidRequest("sweeps and gradients do not take edits of states: run requests with edits")
            return made

        made = []
        for edits in copies:
            own = probe(alone, listed(edits))
            both = probe(of_prompt, edits) if outer else own
            made.append(EditedCopy(both, own.watch, len(ids) if own.first_changed is None else own.first_changed))
        return made, probe(of_prompt, ()) if outer else None

    def taped(
        self,
        ids: Sequence[int],
        versions: Versions,
        needs: TapeNeeds,
        edits: Sequence[Edit],
        scheduling: SchedulingOptions,
    ) -> tuple[Tape, NDArray[np.float32]]:
        """Run a prompt, and record the values that a backward pass reads. Returns them, and the last logits (V,).

        Raises:
            InvalidRequest: an edit does not fit.
        """
        _, base = self.edited(ids, [], edits)
        from pellucid.engine.probe import probed_run
        from pellucid.trace.backward.reverse_walk import Tape

        tape = Tape(versions, needs, len(ids), len(ids) - 1, base)
        task = ReadingTask(probed_run(self._runner, ids, tape, len(ids) - 1))
        logits = np.concatenate(list(self._engine.run(task, scheduling, max_unread=2)))
        return tape, logits[-1]

    def control(self, options: Mapping[str, Any]) -> Control:
        """The edits of a request with these options, of the current trace and its own, and its probes."""
        from pellucid.trace.control_vector import Control

        trace, (own, probes) = (self._current.get(), self.vectors.taken_from(dict(options), lambda: self.points))
        return Control([*(trace.edits if trace is not None else ()), *own], probes)

    def project(self, vectors: NDArray[np.float32], rows: int, scheduling: SchedulingOptions) -> NDArray[np.float32]:
        """As ``ModelRunner.project``. The projection runs between the steps of requests.

        Raises: as ``ModelRunner.project``.
        """
        vectors = np.atleast_2d(np.asarray(vectors, np.float32))
        size = max(PROJECTED_ROWS // max(rows, 1), 1) * max(rows, 1)
        parts = [vectors[first : first + size] for first in range(0, len(vectors), size)] or [vectors]
        turns = (self._runner.project(part, rows) for part in parts)
        logits = list(self._engine.run(ReadingTask(turns), scheduling, max_unread=1))
        return logits[0] if len(logits) == 1 else np.concatenate(logits)

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

    def watch(self, request: Request, names: Sequence[str], limit: int, notify: Callable[[], object]) -> TraceStream:
        """Stream the values of points of a running request, from its next step until the stream is closed.

        Arguments and errors are as in ``TraceStream``.
        """
        from pellucid.trace.frames import TraceStream

        assert isinstance(request, LocalRequest)
        refuse_watched(request)
        stream = TraceStream(self.points, names, limit, notify)
        refuse_late(request, stream)
        request.attach(stream.probes(len(request.outputs)), stream.source_probe())
        stream.ended = partial(request.attach, [])
        return stream

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
        made = Trace(self.points, points, own, budget, self._tokenizer.piece)
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


def refuse_watched(request: Request) -> None:
    """Refuse to watch a request that has its own edits or trace. Raises InvalidRequest."""
    if request.watching is not None:
        raise InvalidRequest("a request with its own edits or trace cannot be watched: watch another request")


def refuse_late(request: Request, stream: TraceStream) -> None:
    """Refuse a stream of the source's values of a request that has begun. Raises InvalidRequest."""
    if stream.reads_source and request.prompt_read is not None:
        raise InvalidRequest(
            "points: the encoder has read the source of this request: its values can be streamed only from the "
            "beginning of a request"
        )
