"""The texts of a corpus: a file (.txt, .jsonl, .csv or .parquet) or a folder, read as a stream, or a list."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from msgspec import DecodeError
from msgspec.json import decode

from pellucid.errors import InvalidRequest, brief, one_line, reason, shown
from pellucid.util.checks import items

PIECE = 1 << 13
"""Tokens that run together: several steps. Their vectors are on disk before the next texts run."""
LONGEST_LINE = 64 << 20  # bytes
FIELD = "text"
IN_FOLDERS = (".md", ".txt")
"""The endings of the files of a folder that are texts."""


class TextInputs(Protocol):
    """Turns texts into token ids: ``engine.inputs.Inputs``."""

    def sentences(self, texts: Sequence[str], truncate: bool = ..., prompt: str = ...) -> list[list[int]]: ...


class TextFile:
    """The texts of the file ``path``, in order: a line each (.txt), or the ``field`` of each record ("text" if None).

    Each .txt and .md file below a folder is one text, in the order of their paths. Raises InvalidRequest: the kind of
    file is unknown, a .txt file has no fields, or pyarrow is missing.
    """

    def __init__(self, path: Path, field: str | None = None) -> None:
        self.path, self.asked_field, self.field = path, field, FIELD if field is None else field
        kind = FOLDER if path.is_dir() else path.suffix.lower()
        if kind not in READERS:
            raise InvalidRequest(f"file={brief(str(path))}: its name must end with {', '.join(list(READERS)[1:])}")
        if kind in (FOLDER, ".txt") and field is not None:
            what = "a folder" if kind == FOLDER else "a .txt file"
            raise InvalidRequest(f"field={brief(field)}: {what} has no fields: leave it out")
        self._read = READERS[kind]
        if kind == ".parquet":
            parquet(path)

    def texts(self, start: int = 0) -> Iterator[tuple[str, str]]:
        """Yield the place of each text, such as "notes.txt, line 3", and the text, after the first ``start`` texts.

        Raises InvalidRequest: the file cannot be read, is not UTF-8, or a record has no text.
        """
        name = shown(self.path.name)
        try:
            for place, text in islice(self._read(self.path, self.field), start, None):
                if not isinstance(text, str) or not text:
                    problem = "has no text" if text in (None, "") else f"{brief(text)} is not a text"
                    raise InvalidRequest(f"{name}, {place}: {problem}: give each record a text")
                yield f"{name}, {place}", text
        except OSError as error:
            raise InvalidRequest(f"{one_line(str(self.path))}: cannot be read: {reason(error)}") from error

    def encoded(
        self, inputs: TextInputs, start: int, prompt: str, truncate: bool, piece: int = PIECE
    ) -> Iterator[list[list[int]]]:
        """Yield the token ids of the texts after the first ``start``, in lists of at least ``piece`` tokens together.

        Raises InvalidRequest as ``texts`` and ``Inputs.sentences``; the message has the place of the text.
        """
        ids, tokens = list[list[int]](), 0
        for place, text in self.texts(start):
            try:
                ids += inputs.sentences([text], truncate, prompt)
            except InvalidRequest as error:
                raise type(error)(f"{place}: {error}") from None
            tokens += len(ids[-1])
            if tokens >= piece:
                yield ids
                ids, tokens = [], 0
        if ids:
            yield ids

    def count(self) -> int:
        """The number of texts. Reads and checks the whole file.

        Raises InvalidRequest as ``texts``, or there are no texts.
        """
        count = sum(1 for _ in self.texts())
        if not count:
            raise InvalidRequest(f"{one_line(str(self.path))}: has no texts: give a file with at least one text")
        return count

    def sha256(self) -> str:
        """The SHA-256 (hexadecimal) of the texts and their lengths. Raises: as ``texts``."""
        digest = hashlib.sha256()
        for _, text in self.texts():
            content = text.encode("utf-8", "surrogatepass")
            digest.update(len(content).to_bytes(8, "little") + content)
        return digest.hexdigest()


class TextList:
    """The texts of a list, in order. Raises InvalidRequest: ``texts`` is not a list of at least one text."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = list(items("corpus", texts, "texts, or a path"))
        if not self._texts:
            raise InvalidRequest(f"corpus={brief(texts)}: must be a path, or a list of at least one text")

    def texts(self, start: int = 0) -> Iterator[tuple[str, str]]:
        """As ``TextFile.texts``. The place of a text is its number, such as "text 3"."""
        for number in range(start, len(self._texts)):
            text = self._texts[number]
            if not isinstance(text, str) or not text:
                raise InvalidRequest(f"text {number:,}: {brief(text)} is not a text: give at least 1 character")
            yield f"text {number:,}", text


def corpus_of(corpus: str | Path | Iterable[str], field: str | None = None) -> TextFile | TextList:
    """The texts of a path or of a list. ``field`` is the field of a file's records.

    Raises: as ``TextFile`` and ``TextList``.
    """
    if isinstance(corpus, (str, Path)):
        return TextFile(Path(corpus), field)
    if field is not None:
        raise InvalidRequest(f"field={brief(field)}: a list has no fields: leave it out")
    return TextList(corpus)


Records = Iterator[tuple[str, Any]]
"""The place of each record, such as "line 3", and its text, which is not checked yet."""


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Each line without its end, with its place."""
    with open(path, "rb") as file:
        for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), 1):
            if len(raw) > LONGEST_LINE:
                raise InvalidRequest(
                    f"{shown(path.name)}, line {number:,}: is longer than {LONGEST_LINE >> 20} MiB: split it"
                )
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise _not_utf8(path, f"line {number:,}") from None
            yield f"line {number:,}", line.rstrip("\r\n")


def _not_utf8(path: Path, place: str) -> InvalidRequest:
    return InvalidRequest(f"{shown(path.name)}, {place}: is not UTF-8: convert the file first")


def _folder(path: Path, field: str) -> Records:
    files = {own.relative_to(path).as_posix(): own for own in path.rglob("*") if own.suffix.lower() in IN_FOLDERS}
    for name, file in sorted(files.items()):
        if not file.is_file():
            continue
        with open(file, "rb") as opened:
            raw = opened.read(LONGEST_LINE + 1)
        if len(raw) > LONGEST_LINE:
            raise InvalidRequest(f"{shown(name)}: is longer than {LONGEST_LINE >> 20} MiB: split it")
        try:
            yield shown(name), raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise _not_utf8(path, shown(name)) from None


def _jsonl(path: Path, field: str) -> Records:
    blank = ""
    for place, line in _lines(path):
        if not line.strip():  # only at the end of the file, so that row i belongs to line i
            blank = blank or place
            continue
        if blank:
            raise InvalidRequest(f"{shown(path.name)}, {blank}: is blank: give each line a record")
        try:
            record = decode(line)
        except (DecodeError, RecursionError) as error:
            raise InvalidRequest(f"{shown(path.name)}, {place}: is not JSON: {reason(error)}") from None
        if not isinstance(record, Mapping) or field not in record:
            raise _no_field(path, place, field, record if isinstance(record, Mapping) else ())
        yield place, record[field]


def _csv(path: Path, field: str) -> Records:
    import csv

    def lines(file: BinaryIO) -> Iterator[str]:
        for number, raw in enumerate(file, 1):
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise _not_utf8(path, f"line {number:,}") from None

    csv.field_size_limit(LONGEST_LINE)
    with open(path, "rb") as file:
        reader = csv.reader(lines(file), strict=True)
        try:
            names = next(reader, [])
            if field not in names:
                raise _no_field(path, "line 1", field, names)
            column = names.index(field)
            for row in reader:
                if row:
                    yield f"line {reader.line_num:,}", row[column] if column < len(row) else None
        except csv.Error as error:
            place = f"{shown(path.name)}, line {reader.line_num:,}"
            raise InvalidRequest(f"{place}: is not CSV: {reason(error)}") from None


def _parquet(path: Path, field: str) -> Records:
    module = parquet(path)
    try:
        with module.ParquetFile(path) as file:
            if field not in file.schema_arrow.names:
                raise _no_field(path, "schema", field, file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=[field]):
                for value in batch.column(0):
                    number += 1
                    yield f"row {number:,}", value.as_py()
    except importlib.import_module("pyarrow").ArrowInvalid as error:
        raise InvalidRequest(f"{shown(path.name)}: is not Parquet: {reason(error)}") from None


FOLDER = "folder"
READERS: dict[str, Callable[[Path, str], Records]] = {
    FOLDER: _folder,
    ".txt": lambda path, _: _lines(path),
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}
"""Readers by the ending of a file's name, and of a folder."""


def parquet(path: Path) -> Any:
    """The module ``pyarrow.parquet``. Raises InvalidRequest: pyarrow is not installed."""
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise InvalidRequest(
            f"{shown(path.name)}: Parquet files need pyarrow: pip install pyarrow, or use .jsonl"
        ) from None


def _no_field(path: Path, place: str, field: str, names: Any) -> InvalidRequest:
    known = ", ".join(map(shown, [str(name) for name in names][:8])) or "none"
    return InvalidRequest(
        f"{shown(path.name)}, {place}: has no field {brief(field)} (fields: {known}): choose one with --field"
    )
