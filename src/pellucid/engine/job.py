"""Jobs: tasks with their state in the scheduler and in the engine; messages to the engine, results for readers, fair
shares."""

from __future__ import annotations

import copy
import math
import time
import weakref
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from queue import SimpleQueue
from threading import Event
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from msgspec import Struct
from msgspec.structs import force_setattr, replace

from pellucid.engine.task import Task
from pellucid.runtime.cached_sequence import CachedSequence
from pellucid.util.checks import real, string, whole
from pellucid.util.interpreter import get

if TYPE_CHECKING:
    import asyncio

# Fair shares of the machine between clients: the client that has used the least time comes first.
#
# Each client has a counter of the step seconds that its requests have used. A client that arrives or returns starts at
# the lowest counter of the present clients, so that absent clients do not save up time. This is the virtual token
# counter of Sheng et al. 2024, "Fairness in Serving Large Language Models", counted in seconds.


class FairShares:
    """Counters of the clients with jobs, and of absent clients with a counter above the lowest of these counters."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._jobs: Counter[str] = Counter()

    def enter(self, client: str) -> None:
        """Count a new job of the client."""
        if not self._jobs[client]:
            floor = self._least()
            self._seconds[client] = max(self._seconds.get(client, floor), floor)
        self._jobs[client] += 1

    def leave(self, client: str) -> None:
        """Count an ended job of the client."""
        self._jobs[client] -= 1
        if self._jobs[client]:
            return
        del self._jobs[client]
        floor = self._least()
        self._seconds = {
            one: used for one, used in self._seconds.items() if self._jobs and (one in self._jobs or used > floor)
        }

    def charge(self, tokens: Mapping[str, int], seconds: float) -> None:
        """Charge the ``seconds`` of a step to its clients, in proportion to their ``tokens``.

        This includes a client whose last job failed in the step. If no client has jobs any more, nobody is charged.
        """
        total, floor = sum(tokens.values()), self._least()
        for client, count in tokens.items() if self._jobs else ():
            self._seconds[client] = self._seconds.get(client, floor) + seconds * count / total

    def _least(self) -> float:
        """The lowest counter of the clients with jobs."""
        return min((self._seconds[one] for one in self._jobs), default=0.0)

    @property
    def contended(self) -> bool:
        """True if several clients have jobs."""
        return len(self._jobs) > 1

    def used(self, client: str) -> float:
        """Seconds that the client has used. The client with the lowest value comes first."""
        return self._seconds.get(client, 0.0)


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
        return replace(self, **{name: options.pop(name) for name in ("priority", "deadline") if name in options})


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


# Messages to the engine's thread. The thread handles the messages of its inbox, a queue, in order.


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


# Passes the results of a task to its reader. The reader can cancel the task.

T = TypeVar("T")


class End:
    """The last item in a reader's queue. ``error`` is None if the task succeeded."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def put_results(results: Sequence[tuple[Job, Any]]) -> list[Job]:
    """Put results into the readers' queues, and wake readers in event loops with one call for each loop.

    Returns the jobs whose event loop is closed, because nobody reads the results of these jobs.
    """
    waiting: dict[asyncio.AbstractEventLoop, dict[Job, asyncio.Future[None]]] = {}
    for job, result in results:
        job.results.put(result)
        if reader := job.reader:
            waiting.setdefault(reader.get_loop(), {})[job] = reader
    unread = list[Job]()
    for loop, readers in waiting.items():
        try:
            loop.call_soon_threadsafe(_wake, list(readers.values()))
        except RuntimeError:  # the loop is closed
            unread += readers
    return unread


def _wake(readers: Sequence[asyncio.Future[None]]) -> None:
    for reader in readers:
        if not reader.done():
            reader.set_result(None)


class Results(Generic[T]):
    """Iterator over the results of a task, in order. ``close`` cancels the task. Dropping this object also cancels it.

    The iteration raises the task's errors.
    """

    def __init__(self, job: Job, inbox: SimpleQueue[Message]) -> None:
        self._job, self._inbox, self._reading = job, inbox, False
        self.close = weakref.finalize(self, _close, inbox, job)

    def __iter__(self) -> Results[T]:
        return self

    def __next__(self) -> T:
        self._acknowledge()
        return self._received(get(self._job.results))

    async def stream(self) -> AsyncGenerator[T, None]:
        """Yield the results without blocking an event loop. The task ends when the iteration ends."""
        import asyncio  # slow to import, and most runs do not need it

        loop, job = asyncio.get_running_loop(), self._job
        try:
            while True:
                # The future is set before the queue is checked, so a result that arrives after the check wakes this
                # reader.
                job.reader = ready = loop.create_future()
                self._acknowledge()
                while not job.results.empty():
                    try:
                        result = self._received(job.results.get())
                    except StopIteration:
                        return
                    yield result
                    self._acknowledge()
                await ready
        finally:
            job.reader = None
            self.close()

    def _received(self, result: Any) -> T:
        """Return a result from the queue. Raises StopIteration at the end, or the task's error."""
        if isinstance(result, End):
            self._job.results.put(End(None))
            self.close.detach()
            if result.error is not None:
                raise result.error
            raise StopIteration
        self._reading = True
        return result  # type: ignore[no-any-return]

    def _acknowledge(self) -> None:
        """Count the last result as read, and resume the task if it paused for this reader."""
        if self._reading:
            self._reading = False
            self._job.read += 1
            if self._job.paused and not self._job.is_ahead and not self._job.ended:
                self._inbox.put(Resume(self._job))


def _close(inbox: SimpleQueue[Message], job: Job) -> None:
    """Ask the engine to abort a job."""
    if not job.ended:
        inbox.put(Abort(job))


def copied(error: BaseException) -> BaseException:
    """A copy of an error for one of several readers. Raising an error changes it, so each reader raises a copy."""
    try:
        own = copy.copy(error)
    except Exception:
        return error
    own.__cause__ = error
    return own
