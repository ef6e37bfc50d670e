"""The index of an activation dataset, the shards of an interrupted run in its folder, and the options of a
recording."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from msgspec import Struct, ValidationError, convert, to_builtins
from msgspec.structs import replace

from pellucid.errors import FileFormatError, InvalidRequest, brief, one_line, reason, shown
from pellucid.trace.dataset.columns import DTYPES, SAFETENSORS, StoredColumn
from pellucid.trace.dataset.shard_file import (
    KEY,
    PART,
    ShardLayout,
    check_parquet,
    run_of_parquet,
    sha256_of,
    sync_folder,
)
from pellucid.util.checks import boolean, whole
from pellucid.util.paths import is_file_name, move
from pellucid.weights.checkpoint import ModelFile
from pellucid.weights.safetensors import read_table
from pellucid.weights.sources.source import DownloadProgress

# The index of an activation dataset, and the shards of an interrupted run in its folder.
#
# The index ``dataset.json`` says what the dataset holds: the model, the corpus and the points (``run``), the columns,
# and the shards with their sizes and SHA-256. It has no times, paths or numbers of threads, so equal datasets have
# equal bytes. The hash of the dataset is the SHA-256 of the index without the hash. The index is written when all
# shards are on disk. The files are not trusted: the types and names in an index are checked.

INDEX, VERSION = "dataset.json", 1
PREFIX = "activations-"
MOST_INDEX = 1 << 30  # bytes
FORMATS = ("safetensors", "parquet")


class ShardRecord(Struct, frozen=True):
    """A shard of an index: its ``file``, its rows, its first text, and the size and SHA-256 of the file."""

    file: str
    rows: int
    first_text: int
    bytes: int
    sha256: str


class DatasetIndex(Struct, frozen=True):
    """The contents of an index. ``run`` describes the model, the corpus and the points."""

    version: int
    run: dict[str, Any]
    rows: int
    columns: tuple[StoredColumn, ...]
    shards: tuple[ShardRecord, ...]
    sha256: str = ""

    def hashed(self) -> str:
        """The hash of the dataset: the SHA-256 (hexadecimal) of the index without the hash."""
        facts = to_builtins(self)
        del facts["sha256"]
        return hashlib.sha256(canonical(facts).encode()).hexdigest()

    @property
    def run_text(self) -> str:
        """The description of the run, as every shard has it."""
        return canonical(self.run)

    def layout(self, number: int) -> ShardLayout:
        """The layout of a shard."""
        return ShardLayout(self.columns, self.shards[number].rows, self.run_text)


def canonical(facts: Mapping[str, Any]) -> str:
    """A JSON value as text, always with the same bytes."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":"))


def shard_name(number: int, count: int, kind: str) -> str:
    """The name of a shard's file, such as activations-00002-of-00010.safetensors."""
    return f"{PREFIX}{number:05d}-of-{count:05d}.{kind}"


def shards_in(folder: Path) -> tuple[int, int]:
    """The number of shards in a folder, and the number of all shards of its dataset (0: not known yet)."""
    names = [one.stem for one in folder.glob(f"{PREFIX}*") if one.suffix[1:] in FORMATS]
    total = names[0].rpartition("-of-")[2] if names else ""
    return len(names), int(total) if total.isdecimal() else 0


def write_index(folder: Path, index: DatasetIndex, writer: str) -> None:
    """Write the index to its folder in one step. Parts that end together write it under names of their ``writer``.

    Raises OSError.
    """
    part = folder / f"{INDEX}.{writer}{PART}"
    with open(part, "wb") as file:
        file.write(json.dumps(to_builtins(index), indent=1).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    move(part, folder / INDEX)
    sync_folder(folder)


def read_index(folder: Path) -> DatasetIndex:
    """Read the index of a dataset's folder. Raises FileFormatError if the index is missing, damaged, or of another
    version.
    """
    path = folder / INDEX
    try:
        with open(path, "rb") as file:
            raw = file.read(MOST_INDEX + 1)
        facts = json.loads(raw)
    except FileNotFoundError:
        unfinished = any(folder.glob(f"{PREFIX}*"))
        remedy = "run the same command again to finish it" if unfinished else "name the folder of a dataset"
        raise FileFormatError(path, "file", f"is missing: {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(path, "file", f"cannot be read: {reason(error)}") from error
    version = facts.get("version") if isinstance(facts, dict) else None
    if version != VERSION:
        raise FileFormatError(path, "version", f"{brief(version)} is unknown; this release reads {VERSION}")
    try:
        index = convert(facts, DatasetIndex)
    except ValidationError as error:
        raise FileFormatError(path, "index", brief(str(error))) from None
    _check(path, index)
    return index


def _check(path: Path, index: DatasetIndex) -> None:
    names = [column.name for column in index.columns]
    sizes = [size for column in index.columns for size in column.shape]
    problem = ""
    if len(set(names)) < len(names) or any(column.dtype not in SAFETENSORS for column in index.columns):
        problem = "columns: two have one name, or a type is unknown"
    elif not all(0 < size < 1 << 31 for size in sizes):
        problem = "columns: a size is out of range"
    elif not index.shards or any(shard.rows < 0 for shard in index.shards):
        problem = "shards: there are none, or a number of rows is negative"
    elif not all(is_file_name(shard.file) and "/" not in shard.file for shard in index.shards):
        problem = "shards: a name is no file in the folder"
    elif sum(shard.rows for shard in index.shards) != index.rows:
        problem = "rows: are not the sum of the shards' rows"
    elif index.run.get("format") not in FORMATS or not isinstance(index.run.get("points"), dict):
        problem = "run: lacks the format or the points"
    elif index.hashed() != index.sha256:
        problem = "sha256: is not the hash of the index, which was changed or damaged"
    if problem:
        field, _, text = problem.partition(": ")
        raise FileFormatError(path, field, text)


class DatasetFolder:
    """The ``folder`` of a dataset whose shards have the given numbers of ``rows``, all made by one ``run``. Raises
    InvalidRequest if the folder has shards or an index of another run, or cannot be read.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any], rows: Sequence[int]) -> None:
        self._folder, self._run, self._rows = folder, run, rows
        self._names = [shard_name(number, len(rows), str(run["format"])) for number in range(len(rows))]
        try:
            present = sorted(one for one in folder.glob(f"{PREFIX}*") if one.suffix[1:] in FORMATS)
            for path in present:
                self._refuse_other(path.name, run_of(path))
            self._stated = dict[str, str]()
            if (folder / INDEX).exists():
                index = read_index(folder)
                self._refuse_other(INDEX, index.run_text)
                self._stated = {shard.file: shard.sha256 for shard in index.shards}
        except OSError as error:
            raise InvalidRequest(f"{one_line(str(folder))}: cannot be read: {reason(error)}") from error
        self.finished = {number for number, name in enumerate(self._names) if (folder / name).is_file()}
        """The numbers of the shards that are complete and on disk."""

    def path(self, number: int) -> Path:
        return self._folder / self._names[number]

    def _refuse_other(self, name: str, text: str | None) -> None:
        if text == canonical(self._run):
            return
        if text is None:
            raise InvalidRequest(
                f"{shown(name)}: is damaged, or no shard of a dataset: delete this file, and run the same command again"
            )
        try:
            other = json.loads(text)
        except (ValueError, RecursionError):
            other = None
        changed = "run"
        if isinstance(other, dict):
            changed = " and another ".join(key for key, value in self._run.items() if other.get(key) != value)
        raise InvalidRequest(
            f"{shown(name)}: is of a dataset with another {changed or 'run'}: delete the folder's files to begin "
            "again, or name another folder"
        )

    def index(
        self, columns: Sequence[StoredColumn], first_texts: Sequence[int], known: Mapping[int, str]
    ) -> DatasetIndex:
        """The index of the complete dataset. ``known`` has hashes of new shards; other shards are read.

        Raises:
            OSError: a shard cannot be read.
            InvalidRequest: a shard is not the file that the index of the folder states.
        """
        records = []
        for number, own in enumerate(self._rows):
            path = self.path(number)
            digest = known.get(number) or sha256_of(path)
            if number not in known and digest != self._stated.get(path.name, digest):
                raise InvalidRequest(
                    f"{shown(path.name)}: its SHA-256 is {digest[:12]}…, and {INDEX} says "
                    f"{self._stated[path.name][:12]}…: the file is damaged: delete it, and run the same command again"
                )
            records.append(ShardRecord(path.name, own, first_texts[number], path.stat().st_size, digest))
        index = DatasetIndex(VERSION, dict(self._run), sum(self._rows), tuple(columns), tuple(records))
        return replace(index, sha256=index.hashed())


def run_of(path: Path) -> str | None:
    """The description of the run that made a shard; None if the file is not a shard. Raises OSError."""
    if path.suffix == ".parquet":
        return run_of_parquet(path)
    try:
        file = ModelFile(path)
        try:
            _, metadata = read_table(path, file)
        finally:
            file.close()
    except FileFormatError:
        return None
    run = metadata.get(KEY) if isinstance(metadata, dict) else None
    return run if isinstance(run, str) else None


SHARD_BYTES = 256_000_000  # the usual size of a shard, in bytes
LEAST_SHARD, MOST_SHARD = 1 << 10, 1 << 40
MOST_PARTS = 100_000


class DatasetProgress(DownloadProgress, Protocol):
    """Receives the progress of a recording. ``update`` reports the hashing of the model's files."""

    def surveying(self, texts: int) -> object:
        """``texts`` texts were counted."""

    def recording(self, done: int, total: int) -> object:
        """``done`` of ``total`` rows were written."""


class NoProgress:
    """A ``DatasetProgress`` that shows nothing."""

    def update(self, done_bytes: int, total_bytes: int | None, label: str) -> None: ...

    def surveying(self, texts: int) -> None: ...

    def recording(self, done: int, total: int) -> None: ...


class DatasetOptions(NamedTuple):
    """Options of ``LLM.record_dataset``. ``part`` (number, count) selects the shards that this process computes."""

    dtype: str
    format: str
    truncate: bool
    shard_bytes: int
    part: tuple[int, int]

    @classmethod
    def of(
        cls,
        dtype: str = "float32",
        format: str = "safetensors",
        truncate: bool = False,
        shard_bytes: int | None = None,
        part: str | None = None,
    ) -> DatasetOptions:
        """Check the options. ``part`` is a text such as "2/8" (None: all shards), ``shard_bytes`` None the usual size.
        Raises InvalidRequest if an option is out of range, or pyarrow is missing.
        """
        if dtype not in DTYPES:
            raise InvalidRequest(f"dtype={brief(dtype)}: must be one of {', '.join(DTYPES)}")
        if format not in FORMATS:
            raise InvalidRequest(f"format={brief(format)}: must be one of {', '.join(FORMATS)}")
        if format == "parquet":
            check_parquet(dtype)
        size = whole("shard_bytes", SHARD_BYTES if shard_bytes is None else shard_bytes, LEAST_SHARD, MOST_SHARD)
        return cls(dtype, format, boolean("truncate", truncate), size, _part_of(part))


def _part_of(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    number, slash, count = text.partition("/") if isinstance(text, str) else ("", "", "")
    if not (slash and number.isdecimal() and count.isdecimal() and len(text) < 20):
        raise InvalidRequest(f"part={brief(text)}: must be the number of a part and the number of parts, such as 2/8")
    of = whole("part", int(count), 1, MOST_PARTS)
    return whole("part", int(number), 1, of, f"there are {of:,} parts"), of
