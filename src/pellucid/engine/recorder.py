"""The interface of a trace for a request: recorders for its sequences; a prompt that runs with a recorder of its own.

``trace/`` implements the interface.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pellucid.engine.model_runner import ModelRunner
from pellucid.errors import InvalidRequest, KernelError
from pellucid.runtime.batch import Chunk, Recorder
from pellucid.runtime.cache import BlockTable
from pellucid.sample.candidates import DAMAGED

ProbeScores: TypeAlias = "tuple[dict[str, float], str | None]"
"""The scores of linear probes at one position, by name, and the first name whose score is above its limit, if any."""


class EngineRecorder(Recorder, Protocol):
    """The recorder of one sequence, with the attributes that the engine's tasks use.

    ``tokens`` returns the tokens that the sequence has read. ``error`` is the exception of a failed edit; the request
    fails with it. The request sets ``outputs`` to the builder that collects the sequence's generated tokens.
    """

    @property
    def closed(self) -> bool:
        """True if nobody reads the recorded values any more. Another recorder may then replace this recorder."""
        ...

    outputs: Any
    tokens: Callable[[], Sequence[int]]

    @property
    def error(self) -> BaseException | None: ...

    @property
    def edited(self) -> str:
        """The hook points that the edits change, as a short text; "" without edits."""
        ...

    @property
    def calls(self) -> bool:
        """True if functions see the values. Each token then runs once: the sequence runs no draft tokens."""
        ...

    def scores(self, position: int) -> ProbeScores | None:
        """The scores of linear probes at a position; None without linear probes. Called once for each position."""
        ...

    def follow(self, other: Any) -> None:
        """Continue after the tokens that ``other``, a recorder of the same request, has recorded."""
        ...


class RequestTracer(Protocol):
    """Makes the recorders that record and edit values of a request's sequences.

    ``first_output`` is the first position at which logits, or other values of the head, are recorded (None: no
    position). ``watches_chain`` is True if the sampler's chain is recorded for each token.
    """

    @property
    def watches_chain(self) -> bool: ...

    @property
    def first_output(self) -> int | None: ...

    def begin_source(self, ids: Sequence[int]) -> EngineRecorder:
        """Make the recorder of a source in an encoder-decoder.

        Raises: as ``begin``.
        """
        ...

    def begin(
        self,
        ids: Sequence[int],
        count: int = 1,
        parent: Any = None,
        *,
        most: int | None = None,
        first_output: int = 0,
        source: Any = None,
    ) -> Sequence[EngineRecorder]:
        """Make recorders for ``count`` sequences that continue the same tokens ``ids``.

        With the recorder ``parent``, the sequences continue the sequence of this recorder. ``source`` is the recorder
        of the source that they attend to.

        ``keep`` adds a recorder to the trace. A sequence reads at most ``most`` tokens (None: only ``ids``). Its logits
        are computed from position ``first_output`` on.

        Raises:
            InvalidRequest: the recorded values do not fit into the trace's budget, or an edit has no effect.
        """
        ...

    def unused(self, count: int) -> list[str]:
        """Sentences about edits, or rows of edits, that begin after the ``count`` tokens that were read."""
        ...

    def keep(self, recorder: Any, /) -> None:
        """Add the sequence of a recorder, which runs or has run, to the trace."""
        ...


def scores_at(recorder: Recorder | None, position: int) -> ProbeScores | None:
    """The scores of a sequence's linear probes at a position; None without linear probes."""
    scores: ProbeScores | None = None if recorder is None else recorder.scores(position)  # type: ignore[attr-defined]
    return scores


def raise_of(recorder: Recorder | None) -> None:
    """Raise the error of a sequence's edits, if any."""
    error = getattr(recorder, "error", None)
    if error is not None:
        raise error


def blame_edits(recorder: Recorder | None, error: KernelError) -> None:
    """Raise InvalidRequest if ``error`` reports non-finite logits and the edits of the sequence caused them."""
    found = str(error).removesuffix(f": {DAMAGED}")
    if found != str(error):
        refuse_changed(recorder, found, error)


def refuse_changed(recorder: Recorder | None, found: str, error: KernelError | None = None) -> None:
    """Raise InvalidRequest if a sequence has edits, because the edits caused ``found``."""
    if edited := getattr(recorder, "edited", ""):
        raise InvalidRequest(f"{found} because of the request's edits ({edited}): use smaller edits") from error


# Runs a prompt with a recorder of its own, in the engine's thread, between the steps of requests.


def run_with_recorder(
    runner: ModelRunner, ids: Sequence[int], recorder: Recorder, first_output: int
) -> Generator[NDArray[np.float32], None, None]:
    """Yield the outputs (n, V) from position ``first_output`` on, step by step (n may be 0).

    Raises:
        InvalidRequest: an edit of the recorder fails.
        CacheFull: no pages are left.
    """
    limits = runner.limits.together
    table = BlockTable(scaled=limits.is_scaled(len(ids)))
    try:
        while table.length < len(ids):
            start = table.length
            stop = min(start + limits.tokens, len(ids), max(first_output, start) + limits.outputs)
            chunk = Chunk(table, ids[start:stop], max(0, stop - max(first_output, start)), recorder=recorder)
            outputs = runner.forward([chunk])
            raise_of(recorder)
            yield outputs
    finally:
        runner.cache.release(table)
