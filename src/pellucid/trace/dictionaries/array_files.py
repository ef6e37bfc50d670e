"""Arrays of safetensors and npz files and the configurations beside them. None of these files is trusted."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import FileFormatError, UnsupportedModel, brief, reason, shown
from pellucid.weights.checkpoint import FileCheckpoint, ModelFile, Tensor
from pellucid.weights.pack import decode
from pellucid.weights.safetensors import read_table

# The part of YAML in circuit-tracer's ``config.yaml``: names with texts or numbers, and lists of texts.

LONGEST = 1 << 20
ENTRY = re.compile(r"([A-Za-z_][\w-]*):(?:\s+(.*))?")
ITEM = re.compile(r"\s*-\s+(.*)")


def read_config(path: Path) -> dict[str, str | list[str]]:
    """The entries of a file. Raises FileFormatError if it has anything but names with texts, and lists of texts."""
    file = ModelFile(path)
    try:
        if file.size > LONGEST:
            raise FileFormatError(path, "file", f"{file.size:,} bytes are above the limit of {LONGEST:,}")
        lines = file.read(0, file.size).decode("utf-8", "replace").splitlines()
    finally:
        file.close()
    entries, last = dict[str, str | list[str]](), ""
    for number, line in enumerate(lines, 1):
        bare = line.rstrip()
        if not bare or bare.lstrip().startswith("#") or bare == "---":
            continue
        item, entry = ITEM.fullmatch(bare), ENTRY.fullmatch(bare)
        if item and last and not entries[last]:
            entries[last] = []
        if item and last and isinstance(values := entries[last], list):
            values.append(_text(item[1]))
        elif entry and entry[1] not in entries:
            last = entry[1]
            entries[last] = _text(entry[2] or "")
        else:
            problem = f"{brief(bare)}: must be a name with a text, or an item of a list"
            raise FileFormatError(path, f"line {number}", problem)
    return entries


def _text(value: str) -> str:
    """A text without its quotes, or without the comment after it."""
    if len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]:
        return value[1:-1]
    return value.partition(" #")[0].strip()


# The configuration beside the arrays of a sparse coder. A field that contradicts the arrays is refused.


class StatedConfig(Struct, frozen=True):
    """The fields of a configuration, and its file. Sizes may be texts of digits, because YAML is read as texts.

    Every method raises FileFormatError, which names the field, its value, what it must be, and the remedy.
    """

    path: Path
    fields: Mapping[str, Any]

    def error(self, field: str, problem: str) -> FileFormatError:
        return FileFormatError(self.path, field, f"{brief(self.fields.get(field))}{problem}")

    def text(self, field: str) -> str | None:
        value = self.fields.get(field)
        if value is not None and not isinstance(value, str):
            raise self.error(field, ": must be a text")
        return value

    def flag(self, field: str, default: bool = False) -> bool:
        value = self.fields.get(field, default)
        if not isinstance(value, bool):
            raise self.error(field, ": must be true or false")
        return value

    def k(self, features: int) -> int:
        k = self.fields.get("k")
        if isinstance(k, float) and k.is_integer():
            k = int(k)
        if type(k) is not int or not 1 <= k <= features:
            raise self.error("k", f": must be a whole number from 1 to the {features:,} features")
        return k

    def check_sizes(self, sizes: Mapping[str, int]) -> None:
        """Check that each field in ``sizes``, if it is not missing or null, has the size of the arrays."""
        for field, size in sizes.items():
            value = self.fields.get(field)
            if value is None or (value == size and not isinstance(value, bool)) or value == str(size):
                continue
            raise self.error(
                field, f" contradicts the arrays, which have {size:,}: correct it, or use the arrays of this file"
            )

    def check_is(self, field: str, found: str, *, known: tuple[str, ...]) -> None:
        """Check that a text, if it is not missing or null, is ``found``, which the arrays show."""
        value = self.text(field)
        if value is not None and value not in known:
            raise self.error(field, f" is not read; known are {', '.join(known)}")
        if value not in (None, found):
            raise self.error(field, f" contradicts the arrays, which are {found!r}: correct it, or use the other files")


MOST_VALUES = 1 << 33  # maximum number of values of an array
MOST_EXPANSION = 64
"""Maximum ratio of an array's bytes to its compressed bytes. Weights hardly compress."""


class ArrayFile(Protocol):
    """The arrays of a file by name. ``shapes`` has their shapes, and ``used`` the names that a format asked for."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    used: set[str]

    def values(self, name: str) -> NDArray[np.float32]: ...


class SafetensorsArrays:
    """The arrays of a safetensors file. Other code may read rows of its ``checkpoint`` on demand."""

    def __init__(self, path: Path) -> None:
        self.path, file = path, ModelFile(path)
        try:
            tensors, _ = read_table(path, file)
        except BaseException:
            file.close()
            raise
        self.checkpoint = FileCheckpoint("safetensors", path, {}, tensors, {path: file})
        self.shapes, self.used = {name: tensor.shape for name, tensor in tensors.items()}, set[str]()

    def tensor(self, name: str) -> Tensor:
        return self.checkpoint.tensors[name]

    def values(self, name: str) -> NDArray[np.float32]:
        tensor = self.tensor(name)
        if tensor.format not in FLOATS:
            if tensor.format != "F64":
                raise FileFormatError(
                    self.path, f"tensor {shown(name)}", f"is stored as {tensor.format}; it must be one of {KNOWN}"
                )
            return self.checkpoint.data(name).view("<f8").astype(np.float32).reshape(tensor.shape)
        if not tensor.shape:
            raw = self.checkpoint.data(name)
            wide = raw.view("<u2").astype(np.uint32) << 16 if tensor.format == "BF16" else raw
            return wide.view(FLOATS[tensor.format]).astype(np.float32).reshape(())
        try:
            return decode(self.checkpoint, name)
        except UnsupportedModel as error:
            raise FileFormatError(self.path, f"tensor {shown(name)}", str(error)) from None


FLOATS = {"F32": "<f4", "F16": "<f2", "BF16": "<f4"}
KNOWN = "F64, F32, F16 and BF16"


class NpzArrays:
    """The arrays of an npz file (a zip archive of npy files). Pickled objects are refused."""

    def __init__(self, path: Path) -> None:
        self.path, self.shapes, self.used = path, dict[str, tuple[int, ...]](), set[str]()
        ModelFile(path).close()  # refuses folders, pipes and empty files
        try:
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    name = info.filename.removesuffix(".npy")
                    self.shapes[name] = self._shape(archive, info)
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError) as error:
            raise self._damaged(error) from None

    def _shape(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[int, ...]:
        field = f"array {shown(info.filename)}"
        if info.file_size > MOST_EXPANSION * (info.compress_size + 4096):
            raise FileFormatError(self.path, field, f"expands to {info.file_size:,} bytes from {info.compress_size:,}")
        with archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            if version[0] not in (1, 2):
                raise FileFormatError(self.path, field, f"has npy version {version[0]}; 1 and 2 are read")
            read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        count = math.prod(shape)
        if dtype.kind != "f" or dtype.itemsize > 8 or count > MOST_VALUES:
            raise FileFormatError(
                self.path, field, f"has {count:,} values of {dtype}; floats of at most 64 bits are read"
            )
        if count * dtype.itemsize > info.file_size:
            raise FileFormatError(
                self.path, field, f"{dtype} of shape {shape} takes more than its {info.file_size:,} bytes"
            )
        return shape

    def values(self, name: str) -> NDArray[np.float32]:
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                return np.asarray(arrays[name], np.float32)
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, KeyError) as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> FileFormatError:
        return FileFormatError(self.path, "file", f"is no npz file, or damaged: {reason(error)}")


def take(file: ArrayFile, name: str, shape: Sequence[int | None], *, missing: Any = None) -> Any:
    """An array of a file as finite float32, or ``missing`` if it is given and the file does not have the array.

    ``shape`` has the sizes that the array must have; None: any size from 1 on. Raises FileFormatError if the array is
    missing, has another shape, or has NaN or infinite values.
    """
    if name not in file.shapes and missing is not None:
        return missing
    check_shape(file, name, shape)
    with np.errstate(over="ignore"):
        return finite(file.path, name, file.values(name))


def check_shape(file: ArrayFile, name: str, shape: Sequence[int | None]) -> None:
    """Raise FileFormatError if the file lacks an array, or the array does not have this shape (None: any size)."""
    found, field = file.shapes.get(name), f"array {shown(name)}"
    file.used.add(name)
    if found is None:
        raise FileFormatError(file.path, field, f"is missing; the file has {brief(', '.join(file.shapes))}")
    if len(found) != len(shape) or any(size < 1 or wanted not in (None, size) for size, wanted in zip(found, shape)):
        sizes = ", ".join("any" if size is None else f"{size:,}" for size in shape)
        raise FileFormatError(file.path, field, f"has shape {brief(found)}; it must be ({sizes})")


def refuse_unused(file: ArrayFile, stated: str) -> None:
    """Raise FileFormatError if the file has an array that the format did not ask for.

    ``stated`` names the field, with its value, that makes a coder without this array.
    """
    for name in sorted(set(file.shapes) - file.used):
        raise FileFormatError(
            file.path,
            f"array {shown(name)}",
            f"is not used with {stated}, and ignoring it would change the features: state what the arrays are, or "
            "remove it",
        )


def file_named(names: Sequence[str], path: Path) -> Path | None:
    """The file at a path, or in the folder there, with the first of the ``names`` that exists."""
    files = [path] if path.name in names else [path / name for name in names]
    return next((file for file in files if file.is_file()), None)


def numbered_files(folder: Path, name: str) -> list[Path]:
    """The files of the layers 0, 1, …, whose ``name`` has {} as the number. Raises FileFormatError if a layer before
    the last is missing.
    """
    numbers = {
        int(match[1])
        for file in folder.iterdir()
        if (match := re.fullmatch(re.escape(name).replace(r"\{\}", r"(0|[1-9]\d{0,5})"), file.name))
    }
    missing = set(range(max(numbers, default=-1) + 1)) - numbers
    if missing:
        raise FileFormatError(
            folder,
            name.format(min(missing)),
            f"is missing, and {name.format(max(numbers))} is there: a folder has the files of all layers from 0 on; "
            "open one file alone",
        )
    return [folder / name.format(number) for number in sorted(numbers)]


def finite(path: Path, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(values).all():
        raise FileFormatError(path, f"array {shown(name)}", "has NaN or infinite values")
    return values
