"""The output of a batch: its answers in the order of its requests, each on the disk as soon as it has ended.

An answer that ends before one ahead of it goes to a file beside the output, ``OUT.early``, and from there to its place
when those ahead are there. So a kill loses no answer that had ended, one slow request holds no other back, and of an
answer that waits for its turn only two numbers are in memory. Kept in memory instead, waiting answers would be lost,
and a bound on their number would stop the batch behind one slow request.

Each step leaves files that can be read again. A line counts when it is on the disk; ``OUT.early`` is emptied only when
all that it holds is in the output on the disk; an unfinished last line is cut off; an answer that is in both files
counts once. What an output holds is never moved: one that an earlier version has begun, in the order in which answers
ended, keeps that order, and the answers that it lacks follow in the order of their requests.
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
    """A line of a file that is not empty: its ``number``, from 1, and the byte at which it ``begins``."""

    number: int
    begins: int
    raw: bytes


def lines_of(path: Path) -> Iterator[FileLine]:
    """The lines of a file. Empty ones are passed over.

    Raises:
        InvalidRequest: it cannot be read, or a line is too long.
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
    """Where the answers in a file are, by their custom_ids: first byte and length. An unfinished last line is cut off.

    Raises:
        InvalidRequest: the file holds something else.
    """
    found = dict[str, tuple[int, int]]()
    if not path.exists():
        return found
    for number, begins, raw in lines_of(path):
        if not raw.endswith(b"\n"):  # only the last one can be so
            with _writing(path), open(path, "r+b") as file:
                file.truncate(begins)
            break
        try:
            custom = json.loads(raw)["custom_id"]
        except (ValueError, TypeError, KeyError, RecursionError):
            custom = None
        if not isinstance(custom, str):
            raise InvalidRequest(
                f"{path.name}, line {number:,}: is no answer of a batch: name a new file, or that of the same batch"
            )
        found[custom] = (begins, len(raw))
    return found


class BatchOutput:
    """The answers to the requests ``names`` (custom_ids, in their order) in the file ``path``.

    Raises:
        InvalidRequest: a file cannot be read or written, or holds something else.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self._path, self._early_path = path, path.with_name(path.name + EARLY)
        begun = path.exists()
        done, early = answered(path), answered(self._early_path)
        if not begun and early:  # of an output that is gone
            early = {}
            with _writing(self._early_path):
                self._early_path.unlink()
        self._turns, self._next = [name for name in names if name not in done], 0
        self._early = {name: early[name] for name in self._turns if name in early}
        with self.opened():
            self.write({})

    @property
    def missing(self) -> set[str]:
        """The requests that have no answer yet."""
        return {name for name in self._turns[self._next :] if name not in self._early}

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Within this, answers can be written."""
        try:
            with _opened(self._path) as self._file, _opened(self._early_path) as self._early_file:
                yield
        finally:
            if not self._early:
                self._early_path.unlink(missing_ok=True)

    def write(self, answers: Mapping[str, bytes]) -> None:
        """Add answers: lines, by their custom_ids. They count when this returns: they are on the disk.

        Raises:
            InvalidRequest: a file cannot be written.
        """
        left, moved = dict(answers), list[str]()
        with _writing(self._path):
            while self._next < len(self._turns):
                name = self._turns[self._next]
                if name in self._early:
                    begins, length = self._early[name]
                    self._early_file.seek(begins)
                    raw = self._early_file.read(length)
                    moved.append(name)
                elif name in left:
                    raw = left.pop(name)
                else:
                    break
                _append(self._file, raw)
                self._next += 1
            os.fsync(self._file.fileno())
        with _writing(self._early_path):
            for name in moved:
                del self._early[name]
            if left:
                for name, raw in left.items():
                    self._early[name] = (self._early_file.seek(0, os.SEEK_END), len(raw))
                    _append(self._early_file, raw)
                os.fsync(self._early_file.fileno())
            elif not self._early:
                self._early_file.truncate(0)


def _opened(path: Path) -> BinaryIO:
    with _writing(path):
        return open(path, "a+b", buffering=0)


def _append(file: BinaryIO, raw: bytes) -> None:
    left = memoryview(raw)
    while left:
        left = left[file.write(left) :]


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Names the file that cannot be written."""
    try:
        yield
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be written: {reason(error)}") from error
