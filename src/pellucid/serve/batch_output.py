"""The output file of a batch: answers in the order of the requests, each on disk as soon as its request has ended.

An answer that is ready too early for this order goes to a second file: ``OUT.early`` for the output ``OUT``. The answer
moves to the output when all answers before it are written. A kill therefore loses no finished answer, a slow request
does not block other requests, and a waiting answer takes only two numbers in memory. If complete answers waited in
memory, a kill would lose them, and a limit on their number would stop the batch behind one slow request.

A kill at any time leaves files that can be read again:

- An answer counts when its line is on disk.
- ``OUT.early`` is emptied after all its answers are in the output on disk.
- An unfinished last line is cut off.
- An answer in both files counts once.
- Lines of the output never move. Earlier versions wrote answers in the order of completion. Such a file keeps its
  order, and the missing answers follow in the order of the requests.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import reason

LONGEST_LINE = 64 << 20  # bytes
EARLY = ".early"


class FileLine(NamedTuple):
    """A non-empty line of a file: its line ``number``, from 1, and its byte offset (``begins``)."""

    number: int
    begins: int
    raw: bytes


def lines_of(path: Path) -> Iterator[FileLine]:
    """Yield the non-empty lines of a file.

    Raises:
        InvalidRequest: the file cannot be read, or a line is too long.
    """
    try:
        with open(path, "rb") as file:
            number = begins = 0
            while raw := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(raw) > LONGEST_LINE:
                    raise InvalidRequest(
                        f"{path.name}, line {number:,}: is longer than {LONGEST_LINE >> 20} MiB: split the request"
                    )
                if raw.strip():
                    yield FileLine(number, begins, raw)
                begins += len(raw)
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be read: {reason(error)}") from error


def answered(path: Path) -> dict[str, tuple[int, int]]:
    """Byte offset and length of each answer in a file, by custom_id. An unfinished last line is cut off.

    Raises:
        InvalidRequest: a line is not an answer of a batch, or the file cannot be read or truncated.
    """
    places = dict[str, tuple[int, int]]()
    if not path.exists():
        return places
    for number, begins, raw in lines_of(path):
        if not raw.endswith(b"\n"):  # only the last line can be unfinished
            with _writing(path), open(path, "r+b") as file:
                file.truncate(begins)
            break
        try:
            custom = json.loads(raw)["custom_id"]
        except (ValueError, TypeError, KeyError, RecursionError):
            custom = None
        if not isinstance(custom, str):
            raise InvalidRequest(
                f"{path.name}, line {number:,}: is not an answer of a batch: "
                "name a new file, or the output of the same batch"
            )
        places[custom] = (begins, len(raw))
    return places


class BatchOutput:
    """The output file ``path`` with the answers to the requests ``names`` (custom_ids in request order).

    Raises:
        InvalidRequest: a file cannot be read or written, or is not a batch file.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self._path, self._early_path = path, path.with_name(path.name + EARLY)
        begun = path.exists()
        done, early = answered(path), answered(self._early_path)
        # The output file was deleted, so the early answers of this file are deleted too.
        if not begun and early:
            early = {}
            with _writing(self._early_path):
                self._early_path.unlink()
        self._turns, self._next = [name for name in names if name not in done], 0
        self._early = {name: early[name] for name in self._turns if name in early}
        with self.opened():
            self.write({})

    @property
    def missing(self) -> set[str]:
        """Requests without an answer."""
        return {name for name in self._turns[self._next :] if name not in self._early}

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Open the files for ``write``, and delete an empty ``OUT.early`` at the end."""
        try:
            with _opened(self._path) as self._file, _opened(self._early_path) as self._early_file:
                yield
        finally:
            if not self._early:
                self._early_path.unlink(missing_ok=True)

    def write(self, answers: Mapping[str, bytes]) -> None:
        """Write ``answers``, a mapping of custom_ids to lines. They are on disk when this returns.

        Raises:
            InvalidRequest: a file cannot be written.
        """
        unwritten, moved = dict(answers), list[str]()
        with _writing(self._path):
            while self._next < len(self._turns):
                name = self._turns[self._next]
                if name in self._early:
                    begins, length = self._early[name]
                    self._early_file.seek(begins)
                    raw = self._early_file.read(length)
                    moved.append(name)
                elif name in unwritten:
                    raw = unwritten.pop(name)
                else:
                    break
                _append(self._file, raw)
                self._next += 1
            os.fsync(self._file.fileno())
        with _writing(self._early_path):
            for name in moved:
                del self._early[name]
            if unwritten:
                for name, raw in unwritten.items():
                    self._early[name] = (self._early_file.seek(0, os.SEEK_END), len(raw))
                    _append(self._early_file, raw)
                os.fsync(self._early_file.fileno())
            elif not self._early:
                self._early_file.truncate(0)


def _opened(path: Path) -> BinaryIO:
    with _writing(path):
        return open(path, "a+b", buffering=0)


def _append(file: BinaryIO, raw: bytes) -> None:
    rest = memoryview(raw)
    while rest:
        rest = rest[file.write(rest) :]


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Convert an OSError to an InvalidRequest that names the file."""
    try:
        yield
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be written: {reason(error)}") from error
