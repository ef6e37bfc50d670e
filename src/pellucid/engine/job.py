"""Jobs: tasks with their state in the scheduler and in the engine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import force_setattr, replace

from pellucid.engine.task import Task
from pellucid.util.checks import real, string, whole

if TYPE_CHECKING:
    import asyncio

MAX_PRIORITY, MAX_DEADLINE = 100, 1e9
MAX_UNREAD = 16
"""Number of unread results at which a task pauses."""


class SchedulingOptions(Struct, frozen=True):
    """Scheduling of a task. Tasks of higher ``priority`` run first, then each client gets a fair share of the time.

    A task fails if it has not ended ``deadline`` seconds after its submission. ``client`` names the task's client.

    Raises:
        InvalidRequest: a value is out of range.
    """

    priority: int = 0
    deadline: float | None = None
    client: str = ""

    def __post_init__(self) -> None:
        force_setattr(self, "priority", whole("priority", self.priority, -MAX_PRIORITY, MAX_PRIORITY))
        string("client", self.client)
        if self.deadline is not None:
            force_setattr(self, "deadline", real("deadline", self.deadline, 0.0, MAX_DEADLINE, above=True))

    def with_options(self, options: dict[str, Any]) -> SchedulingOptions:
        """A copy with the ``priority`` and ``deadline`` from a request's options. Removes both from ``options``."""
        return replace(
            self, **{name: options.pop(name) for name in ("priority", "deadline") if name in options}
        )


DEFAULT_SCHEDULING = SchedulingOptions()


class Job:
    """A task in the scheduler and in the engine, with the queue of its results.

    If ``deliver`` is set, it receives each result immediately. Otherwise each result, converted by ``convert`` if it is
    set, enters the queue ``results``. A job is paused while ``max_unread`` results in the queue are unread. A reader in
    an event loop waits for the future ``reader``.

    Attributes:
        number: the job's place in the order of arrival.
        queued: the task has not had its first step.
        begun: the task has prepared for its first step (``Task.begin``).
        paused: the job waits for its reader.
        preempted: the job has lost its pages, and waits for free pages.
        waiting: number of the task's sequences that wait for another thread.
        sent: number of results that have entered the queue so far.
        read: number of results that the reader has taken from the queue.
    """

    def __init__(
        self,
        task: Task[Any],
        scheduling: SchedulingOptions = DEFAULT_SCHEDULING,
        *,
        max_unread: int = MAX_UNREAD,
        deliver: Callable[[Any], object] | None = None,
        convert: Callable[[Any], Any] | None = None,
    ) -> None:
        self.task, self.priority, self.client = task, scheduling.priority, scheduling.client
        self.deadline, self.submitted = scheduling.deadline, time.monotonic()
        self.number = 0
        self.queued, self.begun, self.paused, self.preempted, self.ended = True, False, False, False, False
        self.results: SimpleQueue[Any] = SimpleQueue()
        self.max_unread, self.deliver, self.convert = max_unread, deliver, convert
        self.reader: asyncio.Future[None] | None = None
        self.sent = self.read = self.waiting = 0

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: by priority, then by arrival. Lower comes first."""
        return -self.priority, self.number

    @property
    def has_pages(self) -> bool:
        """True if a sequence of the task has tokens in the cache."""
        return any(one.table.length for one in self.task.sequences())

    @property
    def is_ahead(self) -> bool:
        """True if the reader has to read before the task continues."""
        return self.sent - self.read >= self.max_unread

    @property
    def waited(self) -> float:
        """Seconds since the submission."""
        return time.monotonic() - self.submitted

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline; infinity without a deadline."""
        return math.inf if self.deadline is None else self.deadline - self.waited
