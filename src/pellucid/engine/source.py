"""The source of a request to an encoder-decoder: a text that the encoder runs once, for all answers of the request."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any, TypeVar

from pellucid.engine.cache_manager import CacheManager
from pellucid.engine.recorder import EngineRecorder, raise_of
from pellucid.engine.task import ChunkOutput, Task, Wait
from pellucid.runtime.cache import BlockTable
from pellucid.runtime.cached_sequence import CachedSequence

T = TypeVar("T")


class SourceSequence(CachedSequence):
    """The tokens of a source, and their pages in the cache of the encoder. They run in one step, without outputs.

    A token of a source depends on all its tokens. So only an equal source finds its pages in the prefix cache: the
    tokens that identify them there are combined with a hash of the whole source. ``recorder`` records and changes
    values of the encoder. Recorded values are always computed, and no other request finds the pages of changed values.
    """

    encodes = True

    recorder: EngineRecorder | None

    def __init__(self, cache: CacheManager, ids: list[int], recorder: EngineRecorder | None = None) -> None:
        super().__init__(ids, len(ids), in_one_step=True, recorder=recorder)
        self._cache = cache
        whole = int.from_bytes(blake2b(array("q", ids).tobytes(), digest_size=8).digest(), "little") >> 2
        self._identity = [whole ^ token for token in ids]

    @property
    def shared_tokens(self) -> Sequence[int]:
        return () if self.uncacheable else self._identity

    def is_missing(self) -> bool:
        """True if the encoder has to run the source, because the prefix cache does not have its pages."""
        recorded = self.recorder is not None and self.recorder.first_recorded is not None
        if not (self.table.length or recorded or self.uncacheable):
            table = self._cache.find_prefix(self._identity, len(self.tokens))
            if table.length == len(self.tokens):
                self.table = table
                self.cached = table.length if self.cached is None else self.cached
            else:  # a beginning of the pages is of no use
                self._cache.release(table)
        return self.unread_tokens > 0

    def watch(self, recorder: EngineRecorder | None) -> None:
        """Watch the source from its next step on, unless it is watched already. None: a closed recorder is removed."""
        if self.recorder is None or self.recorder.closed:
            self.recorder = recorder
            if recorder is not None:
                recorder.tokens = lambda: self.tokens

    def keep(self) -> None:
        """Add the pages to the prefix cache."""
        if not self.uncacheable:
            self._cache.keep_prefix(self.table, self._identity, grows=False)

    def release(self) -> None:
        """Release the pages to the prefix cache."""
        table, self.table = self.table, BlockTable()
        self._cache.release(table, tokens=self.shared_tokens)


class SourceTask(Task[T]):
    """A task whose sequences attend to a ``source``. The encoder runs the source before their first tokens.

    If the task loses its pages, the encoder runs the source again.
    """

    def __init__(self, source: SourceSequence, task: Task[T]) -> None:
        self._source, self._task = source, task
        self._seconds = 0.0

    @property
    def done(self) -> bool:
        return self._task.done

    def begin(self, waited: float) -> None:
        self._task.begin(waited)

    def runnable(self) -> Sequence[CachedSequence]:
        """The source until it is encoded, then the sequences of the task."""
        return [self._source] if self._source.is_missing() else self._task.runnable()

    def sequences(self) -> Sequence[CachedSequence]:
        """The source and the sequences of the task."""
        return [self._source, *self._task.sequences()]

    def process(self, sequence: CachedSequence, outputs: ChunkOutput, seconds: float) -> Iterator[T | Wait]:
        """As in ``Task``. The seconds of the encoder's step count as seconds of the first decoder step."""
        if sequence is self._source:
            raise_of(self._source.recorder)
            self._seconds += seconds
            self._source.keep()
            return
        seconds, self._seconds = seconds + self._seconds, 0.0
        yield from self._task.process(sequence, outputs, seconds)

    def close(self) -> None:
        self._task.close()
        self._source.release()


def with_source(source: SourceSequence | None, task: Task[Any]) -> Task[Any]:
    """The task, after the encoding of its source if it has one."""
    return task if source is None else SourceTask(source, task)
