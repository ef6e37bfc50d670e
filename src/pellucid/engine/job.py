"""Jobs: tasks with their state in the scheduler and in the engine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import force_setattr, replace

from pellucid.pipeline import Task
from pellucid.util.checks import real, string, whole

if TYPE_CHECKING:
    import asyncio

MOST_PRIORITY, LONGEST = 100, 1e9


class Admission(Struct, frozen=True):
    """Scheduling parameters of a task: tasks of higher ``priority`` run first, and clients share the machine.

    A task fails if it has not ended ``deadline`` seconds after its submission. See ``scheduler.py``.

    Raises:
        InvalidRequest: a value is out of range.
    """

    priority: int = 0
    deadline: float | None = None
    client: str = ""

    def __post_init__(self) -> None:
        force_setattr(self, "priority", whole("priority", self.priority, -MOST_PRIORITY, MOST_PRIORITY))
        string("client", self.client)
        if self.deadline is not None:
            force_setattr(self, "deadline", real("deadline", self.deadline, 0.0, LONGEST, above=True))

    def with_options(self, options: dict[str, Any]) -> Admission:
        """A copy with the ``priority`` and ``deadline`` from a request's options. Removes both from ``options``."""
        return replace(
            self, **{name: options.pop(name) for name in ("priority", "deadline") if name in options}
        )


USUAL = Admission()


@dataclass(eq=False)
class Job:
    """A task in the scheduler. ``paused``: it waits for its reader. ``parked``: preempted, it waits for free pages.

    Jobs of one ``client`` share the client's part of the machine. ``begun``: the task has had its first step.
    """

    task: Task[Any]
    priority: int = 0
    client: str = ""
    number: int = 0
    paused: bool = False
    parked: bool = False
    begun: bool = False

    @property
    def place(self) -> tuple[int, int]:
        """Sort key: by priority, then by arrival. Lower comes first."""
        return -self.priority, self.number

    @property
    def waited(self) -> float:
        """Seconds since the submission."""
        return 0.0

    @property
    def has_pages(self) -> bool:
        return any(one.table.length for one in self.task.texts())


class RunningJob(Job):
    """A job with the queue of its results. ``sent`` and ``read`` count the results.

    The queue holds up to ``ahead`` results. ``convert`` converts each result before it enters the queue. With
    ``deliver`` the queue stays empty: ``deliver`` receives each result immediately. A reader in an event loop waits for
    the future ``reader``. ``waits`` is True until the first step. ``waiting`` counts sequences that wait for another
    thread.
    """

    def __init__(
        self,
        task: Task[Any],
        how: Admission,
        ahead: int,
        deliver: Callable[[Any], object] | None,
        convert: Callable[[Any], Any] | None,
    ) -> None:
        super().__init__(task, how.priority, how.client)
        self.how, self.ahead, self.came = how, ahead, time.monotonic()
        self.waits = True
        self.results: SimpleQueue[Any] = SimpleQueue()
        self.deliver, self.convert = deliver, convert
        self.reader: asyncio.Future[None] | None = None
        self.sent = self.read = self.waiting = 0
        self.ended = False

    @property
    def is_ahead(self) -> bool:
        return self.sent - self.read >= self.ahead

    @property
    def waited(self) -> float:
        """Seconds since the submission."""
        return time.monotonic() - self.came

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline; infinity without a deadline."""
        return math.inf if self.how.deadline is None else self.how.deadline - self.waited
