"""Messages to the engine's thread. The thread handles the messages of its inbox, a queue, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Event
from typing import Any, TypeAlias

from msgspec import Struct

from pellucid.engine.job import Job
from pellucid.runtime.cached_sequence import CachedSequence


class Submit(Struct, frozen=True):
    """A new job."""

    job: Job


class Abort(Struct, frozen=True):
    """End a job whose results nobody reads any more."""

    job: Job


class Resume(Struct, frozen=True):
    """The reader of a paused job has read enough results: continue the job."""

    job: Job


class Ready(Struct, frozen=True):
    """Another thread has done the work that a sequence waited for (``task.Wait``): iterate ``results`` again.

    ``sequence`` is None for a reading.
    """

    job: Job
    sequence: CachedSequence | None
    results: Iterator[Any]


class BetweenSteps(Struct, frozen=True):
    """Call a function between two steps."""

    function: Callable[[], object]


class Settle(Struct, frozen=True):
    """Set an event when no job can run."""

    event: Event


class Stop(Struct, frozen=True):
    """End all jobs and the thread."""


Message: TypeAlias = Submit | Abort | Resume | Ready | BetweenSteps | Settle | Stop
