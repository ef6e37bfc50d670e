"""Reads tensors from files of ``torch.save``, without torch: a zip archive with a pickle and the bytes of each tensor.

The pickle may build dictionaries, lists, numbers, texts and tensors, and nothing else: the few functions that it may
name are replaced by our own, and all other names are refused. Nothing in the file is executed.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import FileFormatError
from pellucid.errors.messages import brief

MOST_PICKLE = 1 << 24
DTYPES: Mapping[str, str] = {
    "HalfStorage": "float16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "BFloat16Storage": "bfloat16",
}


class _Storage(NamedTuple):
    """The bytes of a tensor: the name of its member, the dtype, and the number of values."""

    key: str
    dtype: str
    size: int


class StoredTensor(NamedTuple):
    """A tensor of a file: its dtype, its shape, and where its values are."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]


def _rebuilt(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> StoredTensor:
    shape = tuple(size)
    expected, strides = 1, list[int]()
    for length in reversed(shape):
        strides.insert(0, expected)
        expected *= length
    numbers = (offset, *shape)
    if not isinstance(storage, _Storage) or not all(type(one) is int and one >= 0 for one in numbers):
        raise pickle.UnpicklingError("a tensor is damaged")
    if any(own != wanted and length > 1 for own, wanted, length in zip(stride, strides, shape)):
        raise pickle.UnpicklingError("a tensor is not contiguous")
    if offset + expected > storage.size:
        raise pickle.UnpicklingError("a tensor is larger than its storage")
    return StoredTensor(storage, offset, shape)


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuilt
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" and name in DTYPES:
            return name
        raise pickle.UnpicklingError(f"it names {brief(f'{module}.{name}')}, which tensors do not need")

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or pid[1] not in DTYPES:
            raise pickle.UnpicklingError("a storage is damaged")
        _, kind, key, _, count = pid
        if not isinstance(key, str) or type(count) is not int or count < 0:
            raise pickle.UnpicklingError("a storage is damaged")
        return _Storage(key, DTYPES[kind], count)


class TorchArchive:
    """A file of ``torch.save``. ``value`` is the saved value, with ``StoredTensor`` in place of tensors.

    Raises:
        FileFormatError: the file has another format, is damaged, or its pickle names something else than tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
            pickles = [one for one in self._zip.infolist() if one.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > MOST_PICKLE:
                raise FileFormatError(path, "data.pkl", "the archive must have one, of at most 16 MiB")
            self._folder = pickles[0].filename.removesuffix("data.pkl")
            self.value: Any = _Reader(io.BytesIO(self._zip.read(pickles[0]))).load()
        except (zipfile.BadZipFile, OSError) as error:
            raise FileFormatError(path, "file", "is no archive of torch.save") from error
        except FileFormatError:
            raise
        except Exception as error:  # a damaged pickle raises errors of many classes
            raise FileFormatError(path, "data.pkl", brief(str(error))) from error

    def values(self, tensor: StoredTensor) -> NDArray[np.float32]:
        """The values of a tensor as float32.

        Raises:
            FileFormatError: the member is missing, compressed, or has another size.
        """
        name = f"{self._folder}data/{tensor.storage.key}"
        width = 8 if tensor.storage.dtype == "float64" else 4 if tensor.storage.dtype == "float32" else 2
        try:
            member = self._zip.getinfo(name)
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != width * tensor.storage.size:
                raise FileFormatError(
                    self.path, name, f"must have {width * tensor.storage.size:,} bytes, uncompressed"
                )
            raw = self._zip.read(member)
        except (KeyError, zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
            raise FileFormatError(self.path, name, "is missing or damaged") from error
        count = int(np.prod(tensor.shape, dtype=np.int64))
        part = raw[width * tensor.offset : width * (tensor.offset + count)]
        if tensor.storage.dtype == "bfloat16":
            wide = np.frombuffer(part, "<u2").astype(np.uint32) << 16
            return wide.view(np.float32).reshape(tensor.shape)
        kind = {"float16": "<f2", "float32": "<f4", "float64": "<f8"}[tensor.storage.dtype]
        return np.frombuffer(part, kind).astype(np.float32).reshape(tensor.shape)
