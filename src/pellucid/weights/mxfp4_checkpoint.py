"""Joins the two safetensors tensors of a quantized matrix, blocks and scales, into one tensor of a block format.

    {name}_blocks   (..., N, 16) uint8   32 values of 4 bits in each block; a byte has two adjacent values
    {name}_scales   (..., N)     uint8   the exponent of each block

The published files of gpt-oss (OpenAI 2025) have this form, called MXFP4. ``MXFP4Checkpoint`` has one tensor
"{name}_blocks" of format MXFP4 and shape (..., 32 N). The bytes of this tensor are blocks in the layout of GGUF. They
are computed when they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from pellucid.errors import FileFormatError
from pellucid.weights.checkpoint import Checkpoint, Tensor
from pellucid.weights.refusals import MXFP4

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCKS, SCALES = "_blocks", "_scales"
VALUES, PACKED = 32, 16  # values of a block, and their bytes


def with_joined_blocks(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint, or a `MXFP4Checkpoint` over it if its ``config.json`` declares MXFP4 weights.

    Raises:
        FileFormatError: the shapes or types of blocks and scales do not match. The checkpoint is closed.
    """
    stated = checkpoint.metadata.get("quantization_config")
    if not isinstance(stated, Mapping) or stated.get("quant_method") != MXFP4:
        return checkpoint
    try:
        return MXFP4Checkpoint(checkpoint)
    except FileFormatError:
        checkpoint.close()
        raise


class MXFP4Checkpoint:
    """A `Checkpoint` over another checkpoint that presents each pair of blocks and scales as one tensor."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.kind: str = checkpoint.kind
        self.path: Path = checkpoint.path
        self.metadata: Mapping[str, Any] = checkpoint.metadata
        self._stored = checkpoint
        self._scales: dict[str, str] = {}  # name of blocks → name of their scales
        tensors = dict(checkpoint.tensors)
        for name, blocks in checkpoint.tensors.items():
            other = name.removesuffix(BLOCKS) + SCALES
            if name.endswith(BLOCKS) and other in checkpoint.tensors:
                tensors[name] = _pair(blocks, tensors.pop(other))
                self._scales[name] = other
        self.tensors: Mapping[str, Tensor] = tensors

    def data(self, name: str) -> NDArray[np.uint8]:
        """As in ``Checkpoint``."""
        import numpy as np

        if name not in self._scales:
            return self._stored.data(name)
        data = np.empty(self.tensors[name].nbytes, np.uint8)
        self.read(name, 0, data)
        data.flags.writeable = False
        return data

    def read(self, name: str, start: int, out: NDArray[np.uint8]) -> None:
        """As in ``Checkpoint``."""
        if name not in self._scales:
            self._stored.read(name, start, out)
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

    def file_facts(self) -> list[tuple[str, int, int, int]]:
        """As in ``Checkpoint``."""
        return self._stored.file_facts()

    def check_unchanged(self) -> None:
        """As in ``Checkpoint``."""
        self._stored.check_unchanged()

    def close(self) -> None:
        """As in ``Checkpoint``."""
        self._stored.close()


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
