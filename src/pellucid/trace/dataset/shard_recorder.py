"""Runs the texts of a corpus, divided into shards, through a model, and writes the values of each step."""

from __future__ import annotations

import hashlib
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.engine.encoder_inputs import EncoderInput
from pellucid.engine.engine import Engine
from pellucid.engine.inputs import Inputs
from pellucid.engine.job import Results, SchedulingOptions
from pellucid.engine.tasks.encoding import EncodingTask
from pellucid.errors import InvalidRequest
from pellucid.plan.plan import Plan
from pellucid.plan.points import Point
from pellucid.trace.dataset.columns import POSITIONS, TEXTS, TOKEN_IDS, RecordedColumns
from pellucid.trace.dataset.shard_file import ShardWriter
from pellucid.trace.instrumentation import values_of
from pellucid.trace.positions import EVERY, Positions, TokenTexts
from pellucid.trace.request_trace import RequestTrace
from pellucid.trace.sequence_recorder import SequenceRecorder
from pellucid.trace.traced_model import OpenedModel

# The texts of a corpus as token ids, and their division into shards.
#
# The division depends on the texts alone, so that every machine divides a corpus in the same way.

MOST_TOKENS = 1 << 18
"""Maximum number of tokens that a shard's texts have, so that an interruption loses little work."""
REPORTED = 1024  # texts between two reports of progress


class Corpus(Protocol):
    """Texts in order: ``util.text_file.TextFile`` or ``TextList``."""

    def texts(self, start: int = 0) -> Iterator[tuple[str, str]]:
        """Yield the place of each text, for messages, and the text, after the first ``start`` texts."""


class ReadText(NamedTuple):
    """A text: its ``number``, its token ids, and the positions of its rows."""

    number: int
    ids: list[int]
    positions: NDArray[np.int64]


class ShardTexts(Struct, frozen=True):
    number: int
    texts: range
    rows: range


class Survey(NamedTuple):
    """The number of rows and of tokens of each text, and a hash of the token ids of all texts."""

    rows: Sequence[int]
    tokens: Sequence[int]
    sha256: str

    def shards(self, row_bytes: int, shard_bytes: int) -> list[ShardTexts]:
        """Divide the corpus into shards of whole texts, of at most ``shard_bytes`` if a text is not larger."""
        found = list[ShardTexts]()
        first = first_row = rows = tokens = 0
        for number, (own, count) in enumerate(zip(self.rows, self.tokens)):
            full = (rows + own) * row_bytes > shard_bytes or tokens + count > MOST_TOKENS
            if full and number > first:
                found.append(ShardTexts(len(found), range(first, number), range(first_row, first_row + rows)))
                first, first_row, rows, tokens = number, first_row + rows, 0, 0
            rows, tokens = rows + own, tokens + count
        last = range(first, len(self.rows))
        return [*found, ShardTexts(len(found), last, range(first_row, first_row + rows))]


class CorpusReader:
    """Reads the texts of ``corpus``. ``encode`` returns the token ids of a text, and ``piece`` the text of a token.

    A text has a row for each of its ``tokens``, or a single row if ``per_text``.
    """

    def __init__(
        self,
        corpus: Corpus,
        encode: Callable[[str], list[int]],
        tokens: Positions,
        piece: Callable[[int], str],
        *,
        per_text: bool,
    ) -> None:
        self._corpus, self._encode, self._tokens, self._piece = corpus, encode, tokens, piece
        self._per_text = per_text

    def texts(self, chosen: Sequence[range]) -> Iterator[ReadText]:
        """Yield the texts with the ``chosen`` numbers, in ascending ranges. Other texts are skipped. Raises
        InvalidRequest if a text cannot be read, or lacks a selected token; the message has the place of the text.
        """
        texts, number = self._corpus.texts(), 0
        for own in chosen:
            for place, text in texts:
                number += 1
                if number > own.start:
                    yield self._read(number - 1, place, text)
                if number == own.stop:
                    break

    def _read(self, number: int, place: str, text: str) -> ReadText:
        try:
            ids = self._encode(text)
            if self._per_text or self._tokens == EVERY:
                return ReadText(number, ids, np.arange(1 if self._per_text else len(ids)))
            tokens = self._tokens.resolve(TokenTexts(ids, self._piece))
        except InvalidRequest as error:
            raise type(error)(f"{place}: {error}") from None
        return ReadText(number, ids, tokens.listed(len(ids)))

    def survey(self, progress: Callable[[int], object]) -> Survey:
        """Read all texts once, and count. ``progress`` is called with the number of texts. Raises InvalidRequest as
        ``texts``, or if no text has a row.
        """
        rows, tokens, digest = array("Q"), array("Q"), hashlib.sha256()
        for text in self.texts([range(1 << 62)]):
            rows.append(len(text.positions))
            tokens.append(len(text.ids))
            digest.update(len(text.ids).to_bytes(8, "little") + np.array(text.ids, "<i4").tobytes())
            if len(rows) % REPORTED == 0:
                progress(len(rows))
        if not rows or not sum(rows):
            has = "no texts" if not rows else "no selected tokens"
            raise InvalidRequest(f"corpus: has {has}: give a corpus with at least one")
        return Survey(rows, tokens, digest.hexdigest())


# Runs the texts of shards through a model, and writes each value to its shard when its step has ended.
#
# Texts run together in the engine's steps. Two tasks run at once, so that the steps stay full when a task ends. A
# thread writes the values, so that the steps do not wait for the disk, and another thread hashes complete shards and
# brings them to the disk.

PIECE = 1 << 13  # tokens of the texts of a task: several steps
TASKS = 2  # number of tasks that run at once
WAITING = 1 << 28
"""Maximum size of the values that wait to be written. Further steps wait too."""


class DatasetModel(OpenedModel, Protocol):
    """A loaded model whose activations can be recorded; ``llm.LLM`` implements it."""

    inputs: Inputs
    engine: Engine
    scheduling: SchedulingOptions

    @property
    def plan(self) -> Plan: ...
    @property
    def points(self) -> dict[str, Point]: ...


class OpenShard:
    """A shard that is written: its texts, its ``writer``, and the number of texts that have not ended.

    ``puts`` are the writes of its values, which must end before the shard is complete.
    """

    def __init__(self, shard: ShardTexts, writer: ShardWriter) -> None:
        self.shard, self.writer, self.left = shard, writer, len(shard.texts)
        self.puts = list[Future[None]]()


class _RunningTask(NamedTuple):
    open: OpenShard
    texts: list[ReadText]
    results: Results[tuple[int, NDArray[np.float32]]]


class ShardRecorder:
    """Records the ``columns`` of texts, once. ``opened`` makes the writer of a shard.

    ``progress`` is called with the number of rows of each text that has ended.
    """

    def __init__(
        self,
        model: DatasetModel,
        columns: RecordedColumns,
        opened: Callable[[ShardTexts], ShardWriter],
        progress: Callable[[int], object],
    ) -> None:
        self._model, self._columns, self._opened, self._progress = model, columns, opened, progress
        self._tracer = RequestTrace(model.points, columns.selected, [], None, lambda _: None, model.tokenizer.piece)
        self._running, self._writing = deque[_RunningTask](), deque[tuple[int, Future[str]]]()
        self._unfinished = dict[int, OpenShard]()
        self._rows, self._room = ThreadPoolExecutor(1, "pellucid-rows"), threading.Condition()
        self._waiting, self._ended = 0, False
        self._failed: Exception | None = None

    def run(self, texts: Iterator[ReadText], shards: Iterable[ShardTexts]) -> dict[int, str]:
        """Record the ``texts`` of all ``shards``, in order. Returns the SHA-256 of each shard by its number. Raises
        InvalidRequest if a text is not as the shards expect, because the corpus has changed; or a file cannot be
        written.
        """
        hashes = dict[int, str]()
        pool = ThreadPoolExecutor(1, "pellucid-shard")
        try:
            for shard in shards:
                own = self._unfinished[shard.number] = OpenShard(shard, self._opened(shard))
                row = 0
                for piece in _pieces(texts, shard):
                    self._running.append(self._start(own, row, piece))
                    row += sum(len(text.positions) for text in piece)
                    while len(self._running) >= TASKS:
                        self._wait(pool)
                if row != len(shard.rows):
                    raise _changed()
                while len(self._writing) > 1:  # a slow disk delays the next shard
                    number, future = self._writing.popleft()
                    hashes[number] = future.result()
            while self._running:
                self._wait(pool)
            hashes |= {number: future.result() for number, future in self._writing}
        finally:
            for task in self._running:
                task.results.close()
            with self._room:  # a step may wait for values that are never written now
                self._ended = True
                self._room.notify_all()
            self._rows.shutdown(wait=True, cancel_futures=True)
            pool.shutdown(wait=True, cancel_futures=True)
            for own in self._unfinished.values():
                own.writer.abandon()
        return hashes

    def _start(self, own: OpenShard, row: int, texts: list[ReadText]) -> _RunningTask:
        self._write_facts(own.writer, row, texts)
        rows = np.cumsum([row, *(len(text.positions) for text in texts)])
        numbers = iter(rows.tolist())

        def keep(recorder: SequenceRecorder) -> None:
            recorder.stream_to(partial(self._take, recorder, own, next(numbers)))

        self._tracer.keep = keep
        needs_outputs = self._tracer.first_output is not None
        inputs = [EncoderInput(text.ids, first_output=0 if needs_outputs else len(text.ids)) for text in texts]
        engine = self._model.engine
        task = EncodingTask(engine.cache, self._model.model.spec, inputs, self._tracer)
        convert: Callable[[Any], int] = lambda result: result[0]  # noqa: E731  # outputs are not kept
        return _RunningTask(
            own, texts, engine.submit(task, self._model.scheduling, max_unread=1 << 20, convert=convert)
        )

    def _write_facts(self, writer: ShardWriter, row: int, texts: list[ReadText]) -> None:
        counts = [len(text.positions) for text in texts]
        if not sum(counts):
            return
        writer.put(TEXTS, row, np.repeat([text.number for text in texts], counts).astype(np.int32))
        if self._columns.rows == "tokens":
            writer.put(POSITIONS, row, np.concatenate([text.positions for text in texts]).astype(np.int32))
            ids = [np.array(text.ids, np.int32)[text.positions] for text in texts]
            writer.put(TOKEN_IDS, row, np.concatenate(ids))

    def _take(
        self,
        recorder: SequenceRecorder,
        own: OpenShard,
        first: int,
        rows: str,
        positions: range,
        block: NDArray[np.float32],
    ) -> None:
        with self._room:
            self._room.wait_for(lambda: self._ended or not self._waiting or self._waiting + block.nbytes <= WAITING)
            try:
                put = self._rows.submit(self._put, recorder, own.writer, first, rows, positions, block)
            except RuntimeError as error:  # the recording has ended
                recorder.error = error
                return
            self._waiting += block.nbytes
            own.puts.append(put)

    def _put(
        self,
        recorder: SequenceRecorder,
        writer: ShardWriter,
        first: int,
        rows: str,
        positions: range,
        block: NDArray[np.float32],
    ) -> None:
        """Write values. An error ends the task (``recorder.error``), or the recording if the task has ended."""
        try:
            parts = recorder.instrumentation.recorded.values()
            for selected, shared, values in values_of(parts, rows, positions, block):
                per_text = self._columns.rows == "texts"
                before = 0 if per_text else selected.tokens.row_of(shared.start, recorder.prompt)
                writer.put(selected.name, first + before, values)
        except Exception as error:
            recorder.error, self._failed = error, self._failed or error
            raise
        finally:
            with self._room:
                self._waiting -= block.nbytes
                self._room.notify_all()

    def _wait(self, pool: ThreadPoolExecutor) -> None:
        """Wait for the oldest task. The shard is finished in another thread after its last text."""
        own, texts, results = self._running[0]
        for number in results:
            self._progress(len(texts[number].positions))  # type: ignore[call-overload]
        if self._failed is not None:  # a write after the end of its task
            raise self._failed
        with self._room:
            own.puts = [put for put in own.puts if not put.done() or put.exception() is not None]
        self._running.popleft()
        own.left -= len(texts)
        if not own.left:
            self._writing.append((own.shard.number, pool.submit(self._finish, own)))

    def _finish(self, own: OpenShard) -> str:
        for put in own.puts:
            put.result()
        digest = own.writer.finish()
        del self._unfinished[own.shard.number]
        return digest


def _pieces(texts: Iterator[ReadText], shard: ShardTexts) -> Iterator[list[ReadText]]:
    """Yield the texts of a shard, in lists of at least ``PIECE`` tokens together."""
    piece, tokens = list[ReadText](), 0
    for number in shard.texts:
        text = next(texts, None)
        if text is None or text.number != number:
            raise _changed()
        piece.append(text)
        tokens += len(text.ids)
        if tokens >= PIECE:
            yield piece
            piece, tokens = [], 0
    if piece:
        yield piece


def _changed() -> InvalidRequest:
    return InvalidRequest("corpus: changed during the run: delete the dataset's folder and begin again")
