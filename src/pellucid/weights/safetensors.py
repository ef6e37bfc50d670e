"""Reader of safetensors files. In: a file or folder. Out: a `Checkpoint` over the files.

Source: https://github.com/huggingface/safetensors#format

    ┌───────────────┬──────────────────────────────────────────────┬──────────────────────────────┐
    │ N, u64 little │ N bytes of JSON: name → dtype, shape, offsets │ data, every byte of it used │
    └───────────────┴──────────────────────────────────────────────┴──────────────────────────────┘

A model in several files has a ``model.safetensors.index.json`` that maps each tensor to its file. The ``config.json``
in the same folder describes the model. It is required, and is the metadata of the checkpoint. The files are not
trusted: lengths, types, shapes and extents are checked before they are used.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from pellucid.errors import FileFormatError, brief, shown
from pellucid.util.paths import is_file_name
from pellucid.weights.checkpoint import FileCheckpoint, ModelFile, Tensor
from pellucid.weights.json_files import MAX_JSON, parse_json, read_json, read_modules
from pellucid.weights.refusals import ADAPTER_FILES, MXFP4

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
"""The files of a PEFT adapter, which may be next to a model."""
MAX_TENSORS = 1 << 20
MAX_RANK = 32  # NumPy allows 64; no model has more than 5

DTYPE_BITS: dict[str, int] = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""dtype → bits of one value. Names that GGUF also has are spelled the same."""


def open_safetensors(path: str | Path) -> FileCheckpoint:
    """Open a .safetensors file, its index, or the folder that contains them with ``config.json``.

    ``path`` of the checkpoint is the folder, ``metadata`` its config.json. Raises `FileFormatError`, with the field and
    its byte offset if known, if a file is invalid.
    """
    path = Path(path)
    # Unlike Path's tests, os.path's tests never raise: they return False for a folder without permission.
    folder = path if os.path.isdir(path) else path.parent
    weights = _weights_of(path) if folder is path else path
    config = folder / "config.json"
    try:
        os.stat(config)
    except FileNotFoundError:
        problem = f"is missing beside {weights.name}: this file describes the model"
        raise FileFormatError(config, "file", problem) from None
    except OSError:
        pass  # read_json reports the reason
    metadata = read_json(config)
    files: dict[Path, ModelFile] = {}
    try:
        tensors = _sharded(weights, files) if weights.name == INDEX_NAME else _single(weights, files)
        tensors |= _of_modules(folder, files)
    except BaseException:
        for file in files.values():
            file.close()
        raise
    return FileCheckpoint("safetensors", folder, metadata, tensors, files)


def _weights_of(folder: Path) -> Path:
    for name in (SINGLE_NAME, INDEX_NAME):
        if os.path.isfile(folder / name):
            return folder / name
    files = weight_files(folder)
    if len(files) == 1:
        return files[0]
    problem = f"holds {len(files)} .safetensors files and no {INDEX_NAME}"
    raise FileFormatError(folder, "folder", problem)


def weight_files(folder: Path) -> list[Path]:
    """The .safetensors files of a folder, except an adapter's."""
    return sorted(path for path in folder.glob("*.safetensors") if path.name not in ADAPTER_FILES)


def _single(path: Path, files: dict[Path, ModelFile]) -> dict[str, Tensor]:
    """The tensor table of one file. Opens the file and adds it to ``files``."""
    file = files[path] = ModelFile(path)
    table, _ = read_table(path, file)
    return table


def read_table(path: Path, file: ModelFile) -> tuple[dict[str, Tensor], Any]:
    """The tensors of one open file, and the value of ``__metadata__`` in its header (None: missing).

    Raises FileFormatError: the file is damaged.
    """
    if file.size < 8:
        raise FileFormatError(path, "header length", f"needs 8 bytes but the file has {file.size}", 0)
    length = int.from_bytes(file.read(0, 8), "little")
    if length > MAX_JSON:
        raise FileFormatError(path, "header length", f"{length:,} is above the limit of {MAX_JSON:,} bytes", 0)
    if length > file.size - 8:
        problem = f"{length:,} but {file.size - 8:,} bytes remain; the file is truncated or damaged"
        raise FileFormatError(path, "header length", problem, 0)
    start = 8 + length
    header = parse_json(path, "header", file.read(8, length), 8)
    metadata = header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise FileFormatError(path, "header", f"{len(header):,} tensors are above the limit of {MAX_TENSORS:,}", 8)
    table = {name: _tensor(path, name, record, start) for name, record in header.items()}
    _check_contiguous(path, table, start, file.size)
    return table, metadata


def header_of(tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str]) -> bytes:
    """The beginning of a file: the header's length and the header. The data of the tensors follows, in this order.

    ``tensors`` maps the name of each tensor to its dtype and shape.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        span = [offset, offset + math.prod(shape) * DTYPE_BITS[dtype] // 8]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": span}
        offset = span[1]
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head


def _tensor(path: Path, name: str, record: Any, start: int) -> Tensor:
    """The tensor of one entry of the header. ``start`` is the byte at which the data begins."""
    field = f"tensor {shown(name)}"
    if not isinstance(record, dict) or record.keys() != {"dtype", "shape", "data_offsets"}:
        raise FileFormatError(path, field, "must have exactly dtype, shape and data_offsets", 8)
    dtype, shape, offsets = record["dtype"], record["shape"], record["data_offsets"]
    bits = DTYPE_BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        known = ", ".join(DTYPE_BITS)
        raise FileFormatError(path, f"{field} dtype", f"{shown(str(dtype))} is unknown; known are {known}", 8)
    if not _sizes(shape) or len(shape) > MAX_RANK or math.prod(n or 1 for n in shape) >= 1 << 60:
        # A size of 0 would make the product 0, so it counts as 1.
        raise FileFormatError(path, f"{field} shape", f"must be at most {MAX_RANK} sizes with a product below 2^60", 8)
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FileFormatError(path, f"{field} data_offsets", "must be two ascending byte offsets", 8)
    total_bits, (begin, end) = math.prod(shape) * bits, offsets
    if total_bits != (end - begin) * 8:
        problem = f"{dtype} of shape {shape} takes {total_bits / 8:,g} bytes but data_offsets span {end - begin:,}"
        raise FileFormatError(path, field, problem, 8)
    return Tensor(name, tuple(shape), dtype, path, start + begin, end - begin)


def _sizes(value: Any) -> bool:
    """True if ``value`` is a list of integers from 0 to 2^63 - 1."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def _check_contiguous(path: Path, table: dict[str, Tensor], start: int, size: int) -> None:
    """Check that tensors leave no holes and do not overlap, as the specification requires."""
    end = start
    for tensor in sorted(table.values(), key=lambda t: (t.offset, t.nbytes)):
        field = f"tensor {shown(tensor.name)} data_offsets"
        if tensor.offset != end:
            how = "overlaps the tensor before it" if tensor.offset < end else "leaves a hole before it"
            raise FileFormatError(path, field, f"{how}: begins at {tensor.offset:,}, not {end:,}", tensor.offset)
        end = tensor.offset + tensor.nbytes
        if end > size:
            problem = f"reaches {end - size:,} bytes past the end of the file, which is truncated or damaged"
            raise FileFormatError(path, field, problem, tensor.offset)
    if end != size:
        raise FileFormatError(path, "data", f"{size - end:,} bytes belong to no tensor", end)


def _sharded(index: Path, files: dict[Path, ModelFile]) -> dict[str, Tensor]:
    """The tensors that an index lists, each from the file that the index states."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FileFormatError(index, "weight_map", "must map each tensor to a file")
    shards: dict[str, dict[str, Tensor]] = {}
    tensors: dict[str, Tensor] = {}
    for name, shard in weight_map.items():
        field = f"weight_map {shown(name)}"
        if not isinstance(shard, str) or not _plain(shard):
            problem = f"{brief(str(shard))} is not the name of a .safetensors file in the same folder"
            raise FileFormatError(index, field, problem)
        if shard not in shards:
            shards[shard] = _single(index.parent / shard, files)
        if name not in shards[shard]:
            raise FileFormatError(index, field, f"is not in {shard}")
        tensors[name] = shards[shard][name]
    for shard, table in shards.items():
        for name in table:
            if weight_map.get(name) != shard:
                where = f"is in {brief(weight_map[name])}" if name in weight_map else "is in no file"
                problem = f"is in this file, but according to {index.name} it {where}: save the model again"
                raise FileFormatError(index.parent / shard, f"tensor {shown(name)}", problem)
    return tensors


def _of_modules(folder: Path, files: dict[Path, ModelFile]) -> dict[str, Tensor]:
    """The tensors of sentence-transformers' modules, named FOLDER/TENSOR.

    Raises FileFormatError: a module has pickled weights only, or a file is damaged.
    """
    tensors: dict[str, Tensor] = {}
    for module in read_modules(folder) or ():
        inside = folder / module.path
        if not module.path or inside in [path.parent for path in files]:
            continue
        if (inside / SINGLE_NAME).is_file():
            table = _single(inside / SINGLE_NAME, files)
            named = {f"{module.path}/{name}": tensor for name, tensor in table.items()}
            tensors |= {name: replace(tensor, name=name) for name, tensor in named.items()}
        elif (inside / "pytorch_model.bin").is_file():
            problem = "holds PyTorch (pickle) weights, which are not read: save the model again as safetensors"
            raise FileFormatError(inside, "folder", problem)
    return tensors


def _plain(name: str) -> bool:
    """True if a file name cannot leave its folder on any system: it has no separator, drive letter or NTFS stream."""
    return name.endswith(".safetensors") and "/" not in name and is_file_name(name)


# Joins the two safetensors tensors of a quantized matrix, blocks and scales, into one tensor of a block format.
#
#     {name}_blocks   (..., N, 16) uint8   32 values of 4 bits in each block; a byte has two adjacent values
#     {name}_scales   (..., N)     uint8   the exponent of each block
#
# The published files of gpt-oss (OpenAI 2025) have this form, called MXFP4. ``MXFP4Checkpoint`` has one tensor
# "{name}_blocks" of format MXFP4 and shape (..., 32 N). The bytes of this tensor are blocks in the layout of GGUF. They
# are computed when they are read.

BLOCKS, SCALES = "_blocks", "_scales"
VALUES, PACKED = 32, 16  # values of a block, and their bytes


def with_joined_blocks(checkpoint: FileCheckpoint) -> FileCheckpoint:
    """Return the checkpoint, or a `MXFP4Checkpoint` over it if its ``config.json`` declares MXFP4 weights.

    Raises FileFormatError: the shapes or types of blocks and scales do not match. The checkpoint is closed.
    """
    stated = checkpoint.metadata.get("quantization_config")
    if not isinstance(stated, Mapping) or stated.get("quant_method") != MXFP4:
        return checkpoint
    try:
        return MXFP4Checkpoint(checkpoint)
    except FileFormatError:
        checkpoint.close()
        raise


class MXFP4Checkpoint(FileCheckpoint):
    """A `Checkpoint` over another checkpoint that presents each pair of blocks and scales as one tensor."""

    def __init__(self, stored: FileCheckpoint) -> None:
        self._stored = stored
        self._scales: dict[str, str] = {}  # name of blocks → name of their scales
        tensors = dict(stored.tensors)
        for name, blocks in stored.tensors.items():
            other = name.removesuffix(BLOCKS) + SCALES
            if name.endswith(BLOCKS) and other in stored.tensors:
                tensors[name] = _pair(blocks, tensors.pop(other))
                self._scales[name] = other
        super().__init__(stored.kind, stored.path, stored.metadata, tensors, stored.files)

    def read(self, name: str, start: int, out: NDArray[np.uint8]) -> None:
        if name not in self._scales:
            super().read(name, start, out)
            return
        import numpy as np

        size = PACKED + 1
        first, last = start // size, -(-(start + len(out)) // size)
        stored, scales = np.empty((last - first) * PACKED, np.uint8), np.empty(last - first, np.uint8)
        self._stored.read(name, first * PACKED, stored)
        self._stored.read(self._scales[name], first, scales)
        # The file has values 0 and 1 in byte 0, 2 and 3 in byte 1. GGUF has 0 and 16 in byte 0, 1 and 17 in byte 1.
        half = stored.reshape(-1, 2, PACKED // 2)
        low, high = half & 15, half >> 4
        blocks = np.empty((last - first, size), np.uint8)
        blocks[:, 0] = scales
        blocks[:, 1::2] = low[:, 0] | low[:, 1] << 4
        blocks[:, 2::2] = high[:, 0] | high[:, 1] << 4
        skipped = start - first * size
        out[:] = blocks.reshape(-1)[skipped : skipped + len(out)]


def _pair(blocks: Tensor, scales: Tensor) -> Tensor:
    """The joined tensor of blocks and their scales. Raises FileFormatError."""
    for tensor in (blocks, scales):
        if tensor.format != "U8":
            raise FileFormatError(
                tensor.path, tensor.name, f"tensor has type {tensor.format}; it must be U8", tensor.offset
            )
    if blocks.shape[-1:] != (PACKED,) or len(blocks.shape) < 3 or blocks.shape[:-1] != scales.shape:
        raise FileFormatError(
            blocks.path,
            blocks.name,
            f"tensor has shape {blocks.shape}, and {scales.name} has shape {scales.shape}; the blocks must have the "
            f"dimensions of the scales and a last dimension of {PACKED}",
            blocks.offset,
        )
    shape = (*blocks.shape[:-2], blocks.shape[-2] * VALUES)
    return replace(blocks, shape=shape, format="MXFP4", nbytes=blocks.nbytes + scales.nbytes)
