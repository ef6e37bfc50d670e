"""The output file of a batch: answers in the order of the requests, each with an id, on disk as soon as it is
complete."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from msgspec import Struct

from pellucid.errors import InvalidRequest, brief, reason
from pellucid.load_options import LoadOptions

# The id of an answer of a batch. It binds the answer to its request, to the model and to the options.
#
# A resumed batch compares the ids in its output with the ids that it would write. So a file never mixes the answers of
# different models, options or requests.

PREFIX = "batch_req_"
DIGITS = 12  # hexadecimal digits of each hash
_ID = re.compile(rf"{PREFIX}([0-9a-f]{{{DIGITS}}})-([0-9a-f]{{{DIGITS}}})-([0-9a-f]{{{DIGITS}}})")
_WITHOUT_EFFECT = {"threads", "pin", "cache_memory", "draft", "pulls", "dictionaries"}
"""Fields of LoadOptions that change no answer."""


class AnswerId(Struct, frozen=True):
    """Hashes of what an answer depends on. The id as a text is ``str(answer_id)``."""

    request: str
    model: str
    options: str

    @classmethod
    def parse(cls, text: Any) -> AnswerId | None:
        """The id with this text; None if the text is no id."""
        match = _ID.fullmatch(text) if isinstance(text, str) else None
        return cls(*match.groups()) if match else None

    def __str__(self) -> str:
        return f"{PREFIX}{self.request}-{self.model}-{self.options}"


def hash_of(value: Any) -> str:
    """A hash of a JSON value. The order of keys counts, because it can change a prompt."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:DIGITS]


def options_hash(options: LoadOptions, vectors: str = "") -> str:
    """A hash of the options that can change an answer, and of registered vectors (``RegisteredVectors.digest``)."""
    names = [name for name in LoadOptions.__struct_fields__ if name not in _WITHOUT_EFFECT]
    control = {"vectors": vectors} if vectors else {}
    return hash_of({name: getattr(options, name) for name in names} | control)


# The output file of a batch: answers in the order of the requests, each on disk as soon as its request has ended.
#
# An answer that is ready too early for this order goes to a second file: ``OUT.early`` for the output ``OUT``. The
# answer moves to the output when all answers before it are written. A kill therefore loses no finished answer, a slow
# request does not block other requests, and a waiting answer takes only a few numbers in memory. If complete answers
# waited in memory, a kill would lose them, and a limit on their number would stop the batch behind one slow request.
#
# A kill at any time leaves files that can be read again:
#
# - An answer counts when its line is on disk.
# - ``OUT.early`` is emptied after all its answers are in the output on disk.
# - An unfinished last line is cut off, if it begins like an answer.
# - An answer in both files counts once.
# - Lines of the output never move.
#
# The output ``-`` is standard output. Its early answers wait in a temporary file, and nothing can be resumed.

STANDARD = "-"  # standard input or output
LONGEST_LINE = 64 << 20  # bytes
EARLY = ".early"
_BEGINNING = f'{{"id": "{PREFIX}'.encode()
_REMEDY = "name a new file, or the output of the same batch"


class FileLine(NamedTuple):
    """A non-empty line of a file: its line ``number``, from 1, and its byte offset (``begins``)."""

    number: int
    begins: int
    raw: bytes


class WrittenAnswer(NamedTuple):
    """An answer on disk: its line number, byte offset and length, its id, and whether it has an error."""

    number: int
    begins: int
    length: int
    id: AnswerId
    failed: bool


def title(path: Path) -> str:
    """The name of a file in messages."""
    return "standard input" if str(path) == STANDARD else path.name


def lines_of(path: Path) -> Iterator[FileLine]:
    """Yield the non-empty lines of a file. The path - is standard input.

    Raises:
        InvalidRequest: the file cannot be read, or a line is too long.
    """
    try:
        with nullcontext(sys.stdin.buffer) if str(path) == STANDARD else open(path, "rb") as file:
            number = begins = 0
            while raw := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(raw) > LONGEST_LINE:
                    raise InvalidRequest(
                        f"{title(path)}, line {number:,}: is longer than {LONGEST_LINE >> 20} MiB: split the request"
                    )
                if raw.strip():
                    yield FileLine(number, begins, raw)
                begins += len(raw)
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be read: {reason(error)}") from error


def answered(path: Path, requests: Mapping[str, str] | None = None) -> dict[str, WrittenAnswer]:
    """The answers in a file, by custom_id. An unfinished last line is cut off.

    Raises:
        InvalidRequest: a line is not an answer to one of ``requests`` (as in `BatchOutput`; None: to any request), or
            the file cannot be read or truncated.
    """
    found = dict[str, WrittenAnswer]()
    if not path.exists():
        return found
    for number, begins, raw in lines_of(path):
        begins_well = raw.startswith(_BEGINNING[: len(raw)])
        if begins_well and not raw.endswith(b"\n"):  # only the last line can be unfinished
            with _writing(path), open(path, "r+b") as file:
                file.truncate(begins)
            break
        line = _parsed(raw)
        answer_id, custom = AnswerId.parse(line.get("id")), line.get("custom_id")
        if answer_id is None or not isinstance(custom, str):
            raise InvalidRequest(f"{path.name}, line {number:,}: is not an answer of a batch: {_REMEDY}")
        if requests is not None and requests.get(custom) != answer_id.request:
            what = "another request" if custom in requests else "a request that the batch does not have"
            raise InvalidRequest(f"{path.name}, line {number:,}: {brief(custom)} is the answer to {what}: {_REMEDY}")
        found[custom] = WrittenAnswer(number, begins, len(raw), answer_id, is_failed(line))
    return found


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return line if isinstance(line, dict) else {}


def is_failed(answer: Mapping[str, Any]) -> bool:
    """True if an answer has an error: its status is not 200."""
    response = answer.get("response")
    return not isinstance(response, dict) or response.get("status_code") != 200


class BatchOutput:
    """The output file ``path`` with the answers to ``requests``: the hash of each request by custom_id, in order.

    ``failed`` is the number of answers on disk that have an error.

    Raises:
        InvalidRequest: a file cannot be read or written, or has answers to other requests.
    """

    def __init__(self, path: Path, requests: Mapping[str, str]) -> None:
        self._path, self._early_path = path, path.with_name(path.name + EARLY)
        self.is_stdout = str(path) == STANDARD
        self._created = not self.is_stdout and not path.exists()
        done, early = dict[str, WrittenAnswer](), dict[str, WrittenAnswer]()
        if self._created:
            # The output file was deleted, so the early answers of this file are deleted too.
            if answered(self._early_path):
                with _writing(self._early_path):
                    self._early_path.unlink()
        elif not self.is_stdout:
            done, early = answered(path, requests), answered(self._early_path, requests)
        self._turns, self._next = [name for name in requests if name not in done], 0
        self._early = {name: (early[name].begins, early[name].length) for name in self._turns if name in early}
        waiting = {name: early[name] for name in self._early}
        self._begun = [(path, one) for one in done.values()] + [(self._early_path, one) for one in waiting.values()]
        self.failed = sum(one.failed for _, one in self._begun)
        with self.opened():  # also before the work, so that a file that cannot be written is an early error
            self.write({})

    def bind(self, model: str, options: str) -> None:
        """Refuse an output with answers of another model, or of other options (their hashes).

        Raises:
            InvalidRequest: the message has the first line that differs.
        """
        for path, answer in self._begun:
            differs = {"another model": answer.id.model != model, "other options": answer.id.options != options}
            if any(differs.values()):
                what = " and ".join(name for name, different in differs.items() if different)
                raise InvalidRequest(
                    f"{path.name}, line {answer.number:,}: was answered by a run with {what}: {_REMEDY}"
                )

    @property
    def missing(self) -> set[str]:
        """Requests without an answer."""
        return {name for name in self._turns[self._next :] if name not in self._early}

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Open the files for ``write``, and delete an empty ``OUT.early`` at the end."""
        if self.is_stdout:
            self._file = sys.stdout.buffer
            early: Any = tempfile.TemporaryFile()  # noqa: SIM115  # the next line closes it
            with early:
                self._early_file = early
                yield
            return
        try:
            with _opened(self._path) as self._file, _opened(self._early_path) as self._early_file:
                yield
        finally:
            if not self._early:
                self._early_path.unlink(missing_ok=True)

    def remove_if_empty(self) -> None:
        """Remove the output of a failed run if this run created it and wrote no answer."""
        if self._created and self._path.is_file() and not self._path.stat().st_size and not self._early:
            self._path.unlink()

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
            self._sync(self._file)
        with _writing(self._early_path):
            for name in moved:
                del self._early[name]
            if unwritten:
                for name, raw in unwritten.items():
                    self._early[name] = (self._early_file.seek(0, os.SEEK_END), len(raw))
                    _append(self._early_file, raw)
                self._sync(self._early_file)
            elif not self._early:
                self._early_file.truncate(0)

    def _sync(self, file: BinaryIO) -> None:
        """Bring what was written to the disk, or to the reader of standard output."""
        file.flush()
        if not self.is_stdout:
            os.fsync(file.fileno())


def _opened(path: Path) -> BinaryIO:
    with _writing(path):
        return open(path, "a+b", buffering=0)


def _append(file: BinaryIO, raw: bytes) -> None:
    rest = memoryview(raw)
    while rest:
        rest = rest[file.write(rest) :]


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Convert an OSError to an InvalidRequest that names the file. The command line handles a closed pipe."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be written: {reason(error)}") from error
