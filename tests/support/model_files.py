"""Writes small GGUF and safetensors files for tests, from the two specifications.

This module does not import `pellucid`, so that reader and writer cannot share a mistake.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_CODES = ("u1", "i1", "u2", "i2", "u4", "i4", "f4", "b1", "str", "array", "u8", "i8", "f8")
_ARRAY_TYPES = {dtype: code for code, dtype in enumerate(_CODES)}


def gguf_string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def gguf_value(value: Any) -> bytes:
    """Type and value of a bool, int (u32), float (f32), str, NumPy scalar or array, list of str or of lists."""
    if isinstance(value, np.generic):
        return struct.pack("<I", _ARRAY_TYPES[value.dtype.str[1:]]) + value.tobytes()
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, (str, bytes)):
        return struct.pack("<I", 8) + gguf_string(value)
    if isinstance(value, np.ndarray):
        code = _ARRAY_TYPES[value.dtype.str[1:]]
        return struct.pack("<IIQ", 9, code, value.size) + value.tobytes()
    inner = 8 if all(isinstance(item, (str, bytes)) for item in value) else 9
    items = b"".join(gguf_value(item)[4:] for item in value)
    return struct.pack("<IIQ", 9, inner, len(value)) + items


def gguf_tensor(name: str | bytes, dims: Sequence[int], code: int, offset: int) -> bytes:
    """A record of the tensor table. ``dims`` begin with the fastest dimension, as in the file."""
    return gguf_string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, code, offset)


def gguf(
    metadata: Mapping[str, Any] | Sequence[tuple[str | bytes, Any]],
    tensors: Mapping[str, tuple[Sequence[int], int, bytes]],
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A whole file. ``tensors``: name → (row-major shape, type id, data). The last tensor is not padded."""
    pairs = list(metadata.items()) if isinstance(metadata, Mapping) else list(metadata)
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    head += b"".join(gguf_string(key) + gguf_value(value) for key, value in pairs)
    data, size = [], 0
    for name, (shape, code, raw) in tensors.items():
        padding = -size % alignment
        head += gguf_tensor(name, tuple(reversed(shape)), code, size + padding)
        data += [b"\0" * padding, raw]
        size += padding + len(raw)
    return b"".join([head, b"\0" * (-len(head) % alignment) if tensors else b"", *data])


def safetensors(tensors: Mapping[str, tuple[str, Sequence[int], bytes]], **metadata: str) -> bytes:
    """A whole file. ``tensors``: name → (dtype, shape, data)."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        data += raw
    return safetensors_raw(header, data)


def safetensors_raw(header: Any, data: bytes) -> bytes:
    """A file with any header: raw bytes, or an object that is written as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data
