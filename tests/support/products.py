"""Calls of the kernels of matrix products."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import KernelKey
from pellucid.weights.pack import Matrix
from support.kernels import Batch, call, guarded


def multiply(
    key: KernelKey, matrix: Matrix, x: NDArray, columns: int, addend: str, threads: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Multiply the rows of x, the kernel's operand, by the matrix. Returns the product and the addend, both (T, N).

    A row has ``columns`` values. ``addend`` is "zeros", "bias" or "residual": the output before the product.
    """
    T, width, rng = len(x), 16 * matrix.groups, np.random.default_rng(seed)
    out, before = guarded((T, width)), np.zeros((T, width), np.float32)
    more, group, row = np.zeros(16, np.float32), 0, 0
    if addend == "bias":
        more, group = rng.standard_normal(width).astype(np.float32), 64
        before += more
    elif addend == "residual":
        out[...] = rng.standard_normal(out.shape)
        more, group, row, before = out, 64, 4 * width, out.copy()
    call(
        key,
        Batch([T]),
        threads,
        weights=matrix.data,
        groups=matrix.groups,
        group_bytes=matrix.packed.group_bytes(columns),
        columns=columns,
        x=x,
        x_stride=x.shape[1] * x.dtype.itemsize,
        out=out,
        out_stride=4 * width,
        addend=more,
        addend_group=group,
        addend_row=row,
        replicated=0,
        rows="tokens",
    )
    return out[:, : matrix.rows], before[:, : matrix.rows]
