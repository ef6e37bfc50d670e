"""Messages to the engine's thread. Its inbox holds them in the order in which other threads send them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Event
from typing import Any, TypeAlias

from msgspec import Struct

from pellucid.engine.job import RunningJob
from pellucid.runtime.sequence import CachedSequence


class Submit(Struct, frozen=True):
    """A new job."""

    job: RunningJob


class Abort(Struct, frozen=True):
    """Nobody reads the results of a job any more: it ends."""

    job: RunningJob


class Resume(Struct, frozen=True):
    """The reader of a job has room for results again."""

    job: RunningJob


class Ready(Struct, frozen=True):
    """The result that a sequence of a job waited for is there: ``results`` go on (``pipeline.Wait``)."""

    job: RunningJob
    sequence: CachedSequence | None
    results: Iterator[Any]


class BetweenSteps(Struct, frozen=True):
    """Call a function between two steps."""

    function: Callable[[], object]


class Settle(Struct, frozen=True):
    """Set an event when no job can run on."""

    event: Event


class Stop(Struct, frozen=True):
    """End all jobs and the thread."""


Message: TypeAlias = Submit | Abort | Resume | Ready | BetweenSteps | Settle | Stop
