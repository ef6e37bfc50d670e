"""Writers of GGUF and safetensors files. They write tensor by tensor, so files may be larger than memory.

Sources: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and
https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.weights.gguf_values import ARRAY, BOOL, NUMBER_TYPES, STRING, TENSOR_TYPES
from pellucid.weights.quant.format import Format, lookup
from pellucid.weights.safetensors import header_of

ALIGNMENT = 32
SAFETENSORS = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
"""Dtypes of safetensors, by their names in GGUF."""


class Written(Struct, frozen=True):
    """A tensor to write. ``data`` computes its bytes, (n,) uint8."""

    shape: tuple[int, ...]
    form: Format
    data: Callable[[], NDArray[np.uint8]]

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return int(np.prod(self.shape[:-1], dtype=np.int64)) * self.form.row_bytes(self.shape[-1])


def written_floats(values: NDArray[np.float32]) -> Written:
    """An array to write as float32."""
    data = np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint8)
    return Written(values.shape, lookup("F32", "a vector"), lambda: data)


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Written]) -> None:
    """Write a GGUF file of version 3."""
    codes = {kind.name: code for code, kind in TENSOR_TYPES.items()}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        code, raw = _value(value)
        head += _string(key) + struct.pack("<I", code) + raw
    offset = 0
    for name, tensor in tensors.items():
        dims = tensor.shape[::-1]
        head += _string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, codes[tensor.form.name], offset)
        offset += tensor.nbytes + _padding(tensor.nbytes)
    with open(path, "wb") as file:
        file.write(head + bytes(_padding(len(head))))
        for tensor in tensors.values():
            file.write(tensor.data().data)
            file.write(bytes(_padding(tensor.nbytes)))


def write_safetensors(path: Path, tensors: Mapping[str, Written], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file. ``metadata`` is the ``__metadata__`` of its header."""
    table = {name: (SAFETENSORS[tensor.form.name], tensor.shape) for name, tensor in tensors.items()}
    with open(path, "wb") as file:
        file.write(header_of(table, metadata or {}))
        for tensor in tensors.values():
            file.write(tensor.data().data)


def _padding(size: int) -> int:
    return -size % ALIGNMENT


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> tuple[int, bytes]:
    numbers = {kind: code for code, kind in NUMBER_TYPES.items()}
    if isinstance(value, str):
        return STRING, _string(value)
    if isinstance(value, (bool, np.bool_)):
        return BOOL, bytes([bool(value)])
    if isinstance(value, (int, float)):
        kind = "<f4" if isinstance(value, float) else "<u4" if value >= 0 else "<i4"
        return numbers[kind], np.array(value, kind).tobytes()
    if isinstance(value, np.ndarray):
        code = BOOL if value.dtype == np.bool_ else numbers[value.dtype.newbyteorder("<").str.replace("|", "<")]
        return ARRAY, struct.pack("<IQ", code, value.size) + value.tobytes()
    items = [_value(item) for item in value]
    code = items[0][0] if items else STRING
    return ARRAY, struct.pack("<IQ", code, len(items)) + b"".join(raw for _, raw in items)
