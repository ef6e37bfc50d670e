"""Reader of GGUF files, versions 2 and 3. In: a path. Out: a `Checkpoint` over the file.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

    ┌──────────────────────────────────────────────────────────────┐
    │ "GGUF" │ version u32 │ tensor count u64 │ key count u64      │
    │ keys:    name │ value type u32 │ value              × count  │   string = length u64 │ UTF-8 bytes
    │ tensors: name │ rank u32 │ dims u64 × rank │ type │ offset   │   array  = type u32 │ count u64 │ values
    │ padding to general.alignment                                 │
    │ data:    each tensor at its offset, aligned                  │
    └──────────────────────────────────────────────────────────────┘

The file is not trusted. Before memory is allocated for a count, the count is compared with the bytes that remain and
with a fixed limit far above any real model. This bounds the time and the memory that a file can cost. The fastest
dimension is stored first; `Tensor.shape` is row-major. The files of a split model (``NAME-00001-of-00003.gguf``) open
as one model, from the path of any of these files.
"""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from pellucid.errors import FileFormatError, brief, shown
from pellucid.weights import gguf_values as stored
from pellucid.weights.checkpoint import FileCheckpoint, ModelFile, Tensor

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_RANK = 4
MAX_DEPTH = 4  # nesting of arrays
MAX_KEYS = MAX_TENSORS = 1 << 17
MAX_ENTRIES = 1 << 22  # strings in arrays, in all keys together; the largest vocabulary has about 2^18
MAX_METADATA = 1 << 28  # bytes before the data; a vocabulary with its merges takes about 10 MB
# Longer arrays of strings are searched a window at a time (``gguf_values.py``), which is faster than a loop.
MAX_ONE_BY_ONE = 1 << 12
FIRST_READ = 1 << 18  # bytes; each further read doubles the loaded bytes
MAX_NAME = 65535  # bytes of a key, from the specification

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
# A nested array counts as 64 entries, because reading it takes as long as reading 64 strings.
_INNER_ARRAY = 64
_MIN_KEY = 8 + 1 + 4 + 1  # bytes of the shortest key with its value
_MIN_TENSOR = 8 + 1 + 4 + 4 + 8  # bytes of the shortest tensor record
SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def open_gguf(path: str | Path) -> FileCheckpoint:
    """Open a GGUF file, or all files of a split model.

    In ``metadata``, arrays of numbers are NumPy arrays; arrays of strings are lists, or a ``StringArray`` if long.
    Raises `FileFormatError`, with the field and its byte offset, if the file is invalid.
    """
    path = Path(path)
    name = SPLIT_NAME.fullmatch(path.name)
    # A count of zero in the name is invalid; the check of split.count below rejects it.
    count = max(int(name["count"]), 1) if name else 1
    files: dict[Path, ModelFile] = {}
    try:
        parts = []
        for number in range(count):
            part_path = split_path(path, name["stem"], number, count) if name else path
            files[part_path] = ModelFile(part_path)
            parts.append(_parse(files[part_path]))
            _check_split(parts[-1], number, count)
        tensors = _merge(parts)
    except BaseException:
        for file in files.values():
            file.close()
        raise
    return FileCheckpoint("gguf", parts[0].path, parts[0].metadata, tensors, files)


def split_path(path: Path, stem: str, number: int, count: int) -> Path:
    """The path of file ``number`` (from 0) of a model in ``count`` files, in the folder of ``path``."""
    return path.with_name(f"{stem}-{number + 1:05d}-of-{count:05d}.gguf")


class _Part(Struct, frozen=True):
    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def _parse(file: ModelFile) -> _Part:
    cursor = _Cursor(file)
    n_tensors, n_keys = _header(cursor)
    metadata = _metadata(cursor, n_keys)
    tensors = _tensors(cursor, n_tensors, _alignment(cursor, metadata))
    return _Part(file.path, metadata, tensors)


class _Cursor:
    """Reads forward through a file. Every read is checked against the bytes that remain.

    ``data`` is the loaded beginning of the file.
    """

    def __init__(self, file: ModelFile) -> None:
        self.file, self.data, self.size, self.position = file, bytearray(), file.size, 0
        self.limit = min(file.size, MAX_METADATA)  # the keys and the tensor table must end before this byte
        self.entries = MAX_ENTRIES  # number of further entries allowed in arrays

    def load(self, end: int) -> None:
        """Extend ``data`` at least to byte ``end``, which must be before the limit."""
        loaded = len(self.data)
        if end > loaded:
            length = min(max(end, 2 * loaded, FIRST_READ), self.limit)
            longer = bytearray(length)
            longer[:loaded] = self.data
            self.file.read_into(loaded, memoryview(longer)[loaded:])
            self.data = longer

    def fail(self, field: str, problem: str, offset: int | None = None) -> NoReturn:
        raise FileFormatError(self.file.path, field, problem, self.position if offset is None else offset)

    def need(self, count: int, each: int, field: str) -> None:
        """Check that ``count`` items of at least ``each`` bytes can follow, and load them."""
        remain = self.limit - self.position
        if count * each > remain:
            what = f"{count:,} bytes" if each == 1 else f"{count:,} × {each} bytes"
            where = "" if self.limit == self.size else f" before the limit of {self.limit:,} for metadata"
            self.fail(field, f"needs {what} but {remain:,} remain{where}; the file is truncated or damaged")
        self.load(self.position + count * each)

    def bytes_from(self, start: int) -> bytes:
        """The bytes from ``start`` up to the position."""
        return bytes(memoryview(self.data)[start : self.position])

    def u32(self, field: str) -> int:
        self.need(4, 1, field)
        self.position += 4
        return int(_U32.unpack_from(self.data, self.position - 4)[0])

    def u64(self, field: str) -> int:
        self.need(8, 1, field)
        self.position += 8
        return int(_U64.unpack_from(self.data, self.position - 8)[0])

    def string(self, field: str, limit: int | None = None) -> str:
        start = self.position
        length = self.u64(field)
        if limit is not None and not 1 <= length <= limit:
            self.fail(field, f"length {length:,} is not in 1 to {limit:,}", start)
        self.need(length, 1, field)
        self.position += length
        try:
            return str(self.data[start + 8 : self.position], "utf-8")
        except UnicodeDecodeError as error:
            self.fail(field, f"is not valid UTF-8 ({error.reason})", start + 8 + error.start)

    def value(self, code: int, field: str, depth: int = 0) -> Any:
        """One metadata value of type ``code``: int, float, bool, str, NumPy array or list."""
        if code == stored.STRING:
            return self.string(field)
        if code == stored.ARRAY:
            return self.array(field, depth)
        dtype = stored.NUMBER_TYPES.get(code)
        if dtype is None:
            self.fail(field, _unknown_type(code), self.position - 4)
        return self.numbers(field, code, np.dtype(dtype), 1).item()

    def array(self, field: str, depth: int) -> Any:
        """An array: NumPy (read-only) for numbers and bools, the result of ``strings``, or a list of nested arrays."""
        if depth >= MAX_DEPTH:
            self.fail(field, f"arrays are nested deeper than {MAX_DEPTH}")
        code, count = self.u32(field), self.u64(field)
        dtype = stored.NUMBER_TYPES.get(code)
        if dtype is not None:
            return self.numbers(field, code, np.dtype(dtype), count)
        if code not in (stored.STRING, stored.ARRAY):
            self.fail(field, _unknown_type(code), self.position - 12)
        self.need(count, 8 if code == stored.STRING else 12, field)
        self.entries -= count if code == stored.STRING else count * _INNER_ARRAY
        if self.entries < 0:
            problem = f"{count:,} entries bring the file's arrays above the limit of {MAX_ENTRIES:,}"
            self.fail(field, problem, self.position - 8)
        if code == stored.STRING:
            return self.strings(field, count)
        return [self.array(f"{field}[{i}]", depth + 1) for i in range(count)]

    def numbers(self, field: str, code: int, dtype: np.dtype[Any], count: int) -> Any:
        self.need(count, dtype.itemsize, field)
        start, self.position = self.position, self.position + count * dtype.itemsize
        # The slice is a copy, because the file does not align arrays.
        values = np.frombuffer(self.bytes_from(start), dtype)
        if code != stored.BOOL:
            return values.astype(dtype.newbyteorder("="), copy=False)
        if count and values.max() > 1:
            self.fail(field, "a bool must be 0 or 1", start + int(values.argmax()))
        return values.view(np.bool_)

    def strings(self, field: str, count: int) -> stored.StringArray | list[str]:
        if count < MAX_ONE_BY_ONE:
            return self._one_by_one(count, field, 0)[0]
        begin, parts, read = self.position, list[stored.Numbers](), 0
        while read < count:
            self.load(min(self.position + stored.WINDOW, self.limit))
            ends = stored.string_ends(self.data, self.position, count - read)
            if len(ends):
                parts.append(ends + (self.position - begin))
                self.position += int(ends[-1])
                read += len(ends)
            # Read the string that ended the run (``string_ends``). After a short run, read more strings one by one,
            # because in a hostile array all runs are short, and this loop would search a window for each string.
            count_alone = min(1 if len(ends) >= MAX_ONE_BY_ONE else MAX_ONE_BY_ONE, count - read)
            parts.append(np.array(self._one_by_one(count_alone, field, read)[1], np.int64) - begin)
            read += count_alone
        return stored.StringArray(self.bytes_from(begin), np.concatenate(parts))

    def _one_by_one(self, count: int, field: str, first: int) -> tuple[list[str], list[int]]:
        """``count`` strings from the index ``first`` on, and the end of each string in the file."""
        strings, ends = list[str](), list[int]()
        while len(ends) < count:
            data, length_at, position = self.data, _U64.unpack_from, self.position
            loaded = len(data)
            try:
                for _ in range(count - len(ends)):
                    start = position + 8
                    end = start + length_at(data, position)[0]
                    if end > loaded:
                        break
                    strings.append(data[start:end].decode())
                    ends.append(end)
                    position = end
            except (UnicodeDecodeError, struct.error):
                pass
            self.position = position
            if len(ends) < count:
                # The string is invalid or not loaded yet: `string` raises the error, or loads it.
                strings.append(self.string(f"{field}[{first + len(ends)}]"))
                ends.append(self.position)
        return strings, ends


def _unknown_type(code: int) -> str:
    return f"value type {code} is unknown; known are 0 to {max(stored.NUMBER_TYPES)}"


def _header(cursor: _Cursor) -> tuple[int, int]:
    cursor.need(4, 1, "magic")
    magic = bytes(cursor.data[:4])
    if magic != MAGIC:
        cursor.fail("magic", f"is {magic!r}, not {MAGIC!r}: this is not a GGUF file")
    cursor.position = 4
    version = cursor.u32("version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if swapped in (1, *VERSIONS):
            cursor.fail("version", "this is a big-endian GGUF file; only little-endian is supported", 4)
        known = " and ".join(map(str, VERSIONS))
        cursor.fail("version", f"{version} is not supported; supported are {known}", 4)
    n_tensors = cursor.u64("tensor count")
    n_keys = cursor.u64("metadata count")
    for count, limit, each, field, offset in (
        (n_tensors, MAX_TENSORS, _MIN_TENSOR, "tensor count", 8),
        (n_keys, MAX_KEYS, _MIN_KEY, "metadata count", 16),
    ):
        remain = cursor.size - cursor.position
        if count * each > remain:
            cursor.fail(field, f"{count:,} entries cannot fit into the {remain:,} bytes that remain", offset)
        if count > limit:
            cursor.fail(field, f"{count:,} is above the limit of {limit:,}", offset)
    return n_tensors, n_keys


def _metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for index in range(count):
        start = cursor.position
        key = cursor.string(f"metadata key {index}", MAX_NAME)
        if key in metadata:
            cursor.fail(f"metadata key {index}", f"{brief(key)} appears twice", start)
        metadata[key] = cursor.value(cursor.u32(shown(key)), shown(key))
    return metadata


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    alignment = _integer(cursor.file.path, metadata, "general.alignment", DEFAULT_ALIGNMENT)
    if alignment <= 0 or alignment & (alignment - 1):
        raise FileFormatError(cursor.file.path, "general.alignment", f"{alignment} is not a power of two")
    return alignment


def _integer(path: Path, metadata: dict[str, Any], key: str, default: int) -> int:
    value = metadata.get(key, default)
    if type(value) is not int:
        raise FileFormatError(path, key, f"must be an integer, not {type(value).__name__}")
    return value


def _tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, Tensor]:
    records: dict[str, tuple[Tensor, int]] = {}  # with the position of the record's offset in the file
    for index in range(count):
        start = cursor.position
        tensor = _tensor(cursor, index, alignment)
        if tensor.name in records:
            cursor.fail(f"tensor {index}", f"the name {brief(tensor.name)} appears twice", start)
        records[tensor.name] = tensor, cursor.position - 8
    data = -(-cursor.position // alignment) * alignment  # start of the data; offsets are relative to it
    end, previous = 0, ""
    for tensor, at in sorted(records.values(), key=lambda record: record[0].offset):
        field = f"tensor {shown(tensor.name)}"
        if tensor.offset < end:
            cursor.fail(field, f"data at offset {tensor.offset:,} overlaps tensor {shown(previous)}", at)
        end, previous = tensor.offset + tensor.nbytes, tensor.name
        if data + end > cursor.size:
            over = f"{data + end - cursor.size:,} bytes past the end of the file"
            cursor.fail(field, f"its {tensor.nbytes:,} bytes reach {over}; the file is truncated or damaged", at)
    return {name: replace(tensor, offset=data + tensor.offset) for name, (tensor, _) in records.items()}


def _tensor(cursor: _Cursor, index: int, alignment: int) -> Tensor:
    """One record of the tensor table. Its ``offset`` is still relative to the start of the data."""
    name = cursor.string(f"tensor {index} name", MAX_NAME)
    field = f"tensor {shown(name)}"
    rank = cursor.u32(f"{field} rank")
    if rank > MAX_RANK:
        cursor.fail(f"{field} rank", f"{rank:,} is above {MAX_RANK}", cursor.position - 4)
    start = cursor.position
    dims = [cursor.u64(f"{field} dims") for _ in range(rank)]
    if 0 in dims:
        cursor.fail(f"{field} dims", f"{dims} has a zero", start)
    code = cursor.u32(f"{field} type")
    block = stored.TENSOR_TYPES.get(code)
    if block is None:
        old = stored.REMOVED_TENSOR_TYPES.get(code)
        problem = f"is {old}, which GGUF has dropped; convert the model again" if old else "is unknown"
        cursor.fail(f"{field} type", f"{code} {problem}", cursor.position - 4)
    count = math.prod(dims)  # a Python integer cannot overflow, but later code may use 64 bits
    if count >= 1 << 63:
        cursor.fail(f"{field} dims", f"{dims} multiply to more than 2^63 values", start)
    row = dims[0] if dims else 1
    if row % block.values:
        problem = f"rows of {row:,} are not a multiple of {block.name}'s {block.values}"
        cursor.fail(f"{field} dims", problem, start)
    offset = cursor.u64(f"{field} offset")
    if offset % alignment:
        cursor.fail(f"{field} offset", f"{offset:,} is not a multiple of {alignment}", cursor.position - 8)
    nbytes = count // block.values * block.nbytes
    return Tensor(name, tuple(reversed(dims)), block.name, cursor.file.path, offset, nbytes)


def _check_split(part: _Part, number: int, count: int) -> None:
    """Check that ``split.no`` and ``split.count`` are the ``number`` and ``count`` in the name of the file.

    The file of a model in one file may lack both keys.
    """
    stated_count = _integer(part.path, part.metadata, "split.count", 1)
    stated_number = _integer(part.path, part.metadata, "split.no", 0)
    if max(stated_count, 1) != count:
        hint = "; a split model's files keep the names NAME-00001-of-00003.gguf" if count == 1 else ""
        raise FileFormatError(part.path, "split.count", f"is {stated_count}, but the file name states {count}{hint}")
    if stated_number != number:
        raise FileFormatError(part.path, "split.no", f"is {stated_number}, but the file name states {number}")


def _merge(parts: list[_Part]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for part in parts:
        twice = tensors.keys() & part.tensors.keys()
        if twice:
            name = min(twice)
            where = tensors[name].path.name
            raise FileFormatError(part.path, f"tensor {shown(name)}", f"is also in {where}")
        tensors.update(part.tensors)
    stated = _integer(parts[0].path, parts[0].metadata, "split.tensors.count", len(tensors))
    if len(parts) > 1 and stated != len(tensors):
        problem = f"is {stated}, but the {len(parts)} files have {len(tensors)} tensors"
        raise FileFormatError(parts[0].path, "split.tensors.count", problem)
    return tensors
