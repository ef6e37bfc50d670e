"""The product x Wᵀ in float32, with the same bits whatever other rows of x and W are computed with it.

A BLAS library promises no such bits: its kernels, and so their order of summation, depend on the shape of the operands
and on the processor. This module calls the engine's own kernel, which adds the columns in ascending order with fused
multiply-adds for each row of x and of W (``kernels/matmul/floats.py``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.library import shared
from pellucid.kernels.matmul.packed_layout import ROWS, round_up
from pellucid.kernels.matmul.product import MatmulRecord
from pellucid.runtime.executor import Executor, Program, table
from pellucid.runtime.memory import address, aligned
from pellucid.weights.pack import prepare
from pellucid.weights.quant.registry import lookup

PADDED = 4096
"""Maximum number of rows of x that are copied at once, with padding."""
SMALL = 1 << 20
"""Number of multiplications below which a meeting of threads takes longer than the product."""


class RowProduct:
    """The matrix W (N, D) float32, packed. ``name`` is for errors. Several threads may call."""

    def __init__(self, rows: NDArray[np.float32], name: str = "a dictionary") -> None:
        self.count, self.width = rows.shape
        form = lookup("F32", name)
        stored = np.ascontiguousarray(rows, np.float32).view(np.uint8).reshape(-1)

        def read(start: int, out: NDArray[np.uint8]) -> None:
            out[:] = stored[start : start + len(out)]

        packing = prepare(form, (self.count, self.width, 4), read)
        for piece in packing.pieces:
            piece()
        self._matrix = packing.matrix
        key = KernelKey("matmul_float", packed=form.packed)
        self._run, self._kernel = shared().function(key), shared().load([key])[key]
        self._zeros = aligned(4 * ROWS).view(np.float32)
        self._zeros[:] = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the packed matrix."""
        return int(self._matrix.data.nbytes)

    def rows(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Some rows of W, (n, D)."""
        groups = self._matrix.data.view(np.float32).reshape(-1, self._matrix.columns, ROWS)
        return np.ascontiguousarray(groups[numbers // ROWS, : self.width, numbers % ROWS])

    def __call__(self, x: NDArray[np.float32], team: Executor | None = None) -> NDArray[np.float32]:
        """The product (n, N) of ``x`` (n, D), on the threads of a ``team``. The bits do not depend on the team."""
        columns, wide = self._matrix.columns, round_up(self.count, ROWS)
        most = min(len(x), PADDED)
        rows = aligned(4 * most * columns).view(np.float32).reshape(most, columns)
        rows[:, self.width :] = 0
        out = aligned(4 * len(x) * wide).view(np.float32).reshape(len(x), wide)
        for first in range(0, len(x), PADDED):
            own = x[first : first + PADDED]
            rows[: len(own), : self.width] = own
            self._multiply(rows[: len(own)], out[first : first + PADDED], team)
        return out[:, : self.count]

    def _multiply(self, x: NDArray[np.float32], out: NDArray[np.float32], team: Executor | None) -> None:
        fields = {
            "weights": self._matrix.address,
            "groups": self._matrix.groups,
            "group_bytes": self._matrix.packed.group_bytes(x.shape[1]),
            "columns": x.shape[1],
            "x": address(x),
            "x_stride": 4 * x.shape[1],
            "out": address(out),
            "out_stride": 4 * out.shape[1],
            "rows": 0,
            "addend": address(self._zeros),
            "addend_group": 0,
            "addend_row": 0,
            "replicated": 0,
        }
        step = np.array([len(x)], np.int64)
        if team is None or len(x) * self.count * self.width < SMALL:
            words = np.array(MatmulRecord.pack(fields), np.int64)
            self._run(address(words), address(step), 0, 1)
        else:
            team.run(Program(table([MatmulRecord.pack(fields, self._kernel, 0)]), (x, out)), step)
