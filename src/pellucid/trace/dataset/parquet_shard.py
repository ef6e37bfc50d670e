"""A shard as a Parquet file: a column of lists of one length for each point. Needs pyarrow.

The file is made from the complete safetensors file of the shard, some rows at a time.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import one_line, reason
from pellucid.trace.dataset.columns import TYPES, StoredColumn
from pellucid.trace.dataset.shard_file import KEY, ShardLayout, mapped
from pellucid.util.text_file import parquet

GROUP_BYTES = 16 << 20
"""Bytes of a row group, which is in memory while it is written."""


def check_parquet(dtype: str) -> None:
    """Refuse Parquet if pyarrow is missing, or for a type that Parquet does not have. Raises InvalidRequest."""
    if dtype == "bfloat16":
        raise InvalidRequest(
            "dtype='bfloat16': Parquet has no bfloat16: use float16 or float32, or format safetensors"
        )
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
    """The ``run`` of a shard; None if the file is not a shard in Parquet."""
    module = parquet(path)
    try:
        metadata = module.read_schema(path).metadata or {}
    except importlib.import_module("pyarrow").ArrowInvalid:
        return None
    run = metadata.get(KEY.encode())
    return None if run is None else bytes(run).decode("utf-8", "replace")


class ParquetColumns(Mapping[str, NDArray[Any]]):
    """The columns of a Parquet shard as arrays (rows, ...). A column is read when it is first used, and stays.

    Raises:
        InvalidRequest: the file cannot be read, or has other columns or another number of rows than ``layout``.
    """

    def __init__(self, path: Path, layout: ShardLayout) -> None:
        self._path, self._columns = path, {column.name: column for column in layout.columns}
        self._rows, self._read = layout.rows, dict[str, NDArray[Any]]()

    def __iter__(self) -> Any:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A column. Raises: as the class."""
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
