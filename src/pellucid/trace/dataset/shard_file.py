"""A shard on disk: a safetensors or Parquet file with a column for each point."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, KernelError, one_line, reason, shown
from pellucid.trace.dataset.columns import SAFETENSORS, TYPES, StoredColumn
from pellucid.util.paths import move
from pellucid.util.text_file import parquet
from pellucid.weights.safetensors import header_of

# A shard on disk: a safetensors file with a tensor (rows, ...) for each column.
#
# The size of the file and the place of each row are known before the first value, so rows are written as soon as a step
# has computed them, in any order, and a shard takes no memory. The file has the name ``NAME.part`` until it is complete
# and on disk. So a file with its final name is complete, whenever the process was killed.

KEY = "pellucid.activations"  # the entry of a shard's metadata that describes its run, as JSON
PART = ".part"
CHUNK = 1 << 20


class ShardLayout:
    """The layout of a shard with ``rows`` rows. ``run`` describes its run, as JSON.

    Attributes:
        header: the first bytes of the file.
        places: the byte at which each column begins.
        nbytes: the size of the file.
    """

    def __init__(self, columns: Sequence[StoredColumn], rows: int, run: str) -> None:
        self.columns, self.rows = tuple(columns), rows
        table = {column.name: (SAFETENSORS[column.dtype], (rows, *column.shape)) for column in columns}
        self.header = header_of(table, {KEY: run})
        self.places, self.nbytes = dict[str, int](), len(self.header)
        for column in columns:
            self.places[column.name] = self.nbytes
            self.nbytes += rows * column.row_bytes


class ShardWriter:
    """Writes the shard ``path``. Methods may be called from several threads.

    ``convert`` makes the final file from the complete safetensors file (None: it is the final file). Raises
    InvalidRequest if the file cannot be written.
    """

    def __init__(self, path: Path, layout: ShardLayout, convert: Callable[[Path, Path], object] | None = None) -> None:
        self._path, self._layout, self._convert = path, layout, convert
        self._columns = {column.name: column for column in layout.columns}
        self._missing = np.full((len(layout.columns), layout.rows), True)
        self._numbers = {column.name: number for number, column in enumerate(layout.columns)}
        self._lock, self._closed = threading.Lock(), False
        self._part = path.with_name(path.name + PART)
        self._content = path.with_name(path.name + ".safetensors" + PART) if convert else self._part
        with self._writing():
            self._file = open(self._content, "wb", buffering=0)  # noqa: SIM115
            self._file.truncate(layout.nbytes)
            self._write(0, layout.header)

    def put(self, column: str, row: int, values: NDArray[Any]) -> None:
        """Write the values (n, ...) of a column from ``row`` on. Does nothing after ``abandon``. Raises InvalidRequest
        if a value does not fit the column's type, or the file cannot be written.
        """
        own = self._columns[column]
        content = own.stored(values)
        with self._lock, self._writing():
            if not self._closed:
                self._write(self._layout.places[column] + row * own.row_bytes, content.reshape(-1).view(np.uint8).data)
                self._missing[self._numbers[column], row : row + len(values)] = False

    def _write(self, place: int, content: bytes | memoryview) -> None:
        self._file.seek(place)
        rest = memoryview(content)
        while rest:
            rest = rest[self._file.write(rest) :]

    def finish(self) -> str:
        """Bring the complete shard to the disk under its name. Returns its SHA-256 (hexadecimal).

        Raises:
            InvalidRequest: the file cannot be written.
            KernelError: a value was not computed.
        """
        if self._missing.any():
            name = self._layout.columns[int(np.argwhere(self._missing)[0, 0])].name
            raise KernelError(f"{self._path.name}: values of {name} were not computed: this is a bug")
        with self._lock, self._writing():
            self._closed = True
            self._file.close()
            if self._convert:
                self._convert(self._content, self._part)
                self._content.unlink()
            digest = sha256_of(self._part)
            with open(self._part, "r+b") as file:
                os.fsync(file.fileno())
            move(self._part, self._path)
            sync_folder(self._path.parent)
        return digest

    def abandon(self) -> None:
        with self._lock:
            self._closed = True
            self._file.close()
            for path in {self._part, self._content}:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise cannot_be_written(self._path, error) from error


def cannot_be_written(path: Path, error: OSError) -> InvalidRequest:
    return InvalidRequest(f"{one_line(str(path))}: cannot be written: {reason(error)}")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while content := file.read(CHUNK):
            digest.update(content)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Bring the names of a folder's files to the disk, on systems that can."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def mapped(path: Path, layout: ShardLayout) -> Mapping[str, NDArray[Any]]:
    """The columns of a safetensors shard, mapped into memory and read-only: arrays (rows, ...). Raises InvalidRequest
    if the file is not the shard that ``layout`` describes, or cannot be read.
    """
    try:
        raw = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{one_line(str(path))}: cannot be read: {reason(error)}") from error
    if len(raw) != layout.nbytes or raw[: len(layout.header)].tobytes() != layout.header:
        raise InvalidRequest(f"{shown(path.name)}: is not the shard that the index describes: record the dataset again")
    found = dict[str, NDArray[Any]]()
    for column in layout.columns:
        begin = layout.places[column.name]
        own = raw[begin : begin + layout.rows * column.row_bytes]
        found[column.name] = own.view(TYPES[column.dtype]).reshape(layout.rows, *column.shape)
    return found


# A shard as a Parquet file: a column of lists of one length for each point. Needs pyarrow.
#
# The file is made from the complete safetensors file of the shard, some rows at a time.

GROUP_BYTES = 16 << 20  # bytes of a row group, which is in memory while it is written


def check_parquet(dtype: str) -> None:
    """Refuse Parquet if pyarrow is missing, or for a type that Parquet does not have. Raises InvalidRequest."""
    if dtype == "bfloat16":
        raise InvalidRequest("dtype='bfloat16': Parquet has no bfloat16: use float16 or float32, or format safetensors")
    try:
        parquet(Path("format=parquet"))
    except InvalidRequest:
        raise InvalidRequest(
            "format='parquet': needs pyarrow: pip install pyarrow, or use format safetensors"
        ) from None


def write_parquet(source: Path, target: Path, layout: ShardLayout, run: str) -> None:
    """Write a shard as Parquet from its safetensors file. The metadata of the schema has the ``run``."""
    arrow = importlib.import_module("pyarrow")
    kinds = {column.name: _type(arrow, column) for column in layout.columns}
    schema = arrow.schema(list(kinds.items()), metadata={KEY: run})
    values = mapped(source, layout)
    rows = max(1, GROUP_BYTES // max(1, sum(column.row_bytes for column in layout.columns)))
    with parquet(target).ParquetWriter(
        target, schema, use_dictionary=False, compression="none", write_statistics=False
    ) as writer:
        for start in range(0, layout.rows, rows):
            made = [
                _array(arrow, column, kinds[column.name], values[column.name][start : start + rows])
                for column in layout.columns
            ]
            writer.write_table(arrow.Table.from_arrays(made, schema=schema))


def _type(arrow: Any, column: StoredColumn) -> Any:
    number = {"float32": arrow.float32, "float16": arrow.float16, "int32": arrow.int32}[column.dtype]()
    return arrow.list_(number, math.prod(column.shape)) if column.shape else number


def _array(arrow: Any, column: StoredColumn, kind: Any, values: NDArray[Any]) -> Any:
    flat = arrow.array(np.array(values).reshape(-1))
    return arrow.FixedSizeListArray.from_arrays(flat, type=kind) if column.shape else flat


def run_of_parquet(path: Path) -> str | None:
    module = parquet(path)
    try:
        metadata = module.read_schema(path).metadata or {}
    except importlib.import_module("pyarrow").ArrowInvalid:
        return None
    run = metadata.get(KEY.encode())
    return None if run is None else bytes(run).decode("utf-8", "replace")


class ParquetColumns(Mapping[str, NDArray[Any]]):
    """The columns of a Parquet shard as arrays (rows, ...). A column is read when it is first used, and stays. Raises
    InvalidRequest if the file cannot be read, or has other columns or another number of rows than ``layout``.
    """

    def __init__(self, path: Path, layout: ShardLayout) -> None:
        self._path, self._columns = path, {column.name: column for column in layout.columns}
        self._rows, self._read = layout.rows, dict[str, NDArray[Any]]()

    def __iter__(self) -> Any:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._read:
            column = self._columns[name]
            arrow = importlib.import_module("pyarrow")
            try:
                own = parquet(self._path).read_table(self._path, columns=[name]).column(0).combine_chunks()
                flat = (own.flatten() if column.shape else own).to_numpy(zero_copy_only=False)
                values = np.asarray(flat, TYPES[column.dtype]).reshape(self._rows, *column.shape)
            except (arrow.ArrowException, OSError, ValueError, AttributeError, IndexError) as error:
                raise InvalidRequest(
                    f"{one_line(str(self._path))}: cannot be read: {reason(error)}: record the dataset again"
                ) from error
            self._read[name] = values
        return self._read[name]
