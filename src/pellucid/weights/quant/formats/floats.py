"""F32, F16, BF16: plain floating point, one value per block."""

from __future__ import annotations

from pellucid.kernels.matmul.file_layout import FileLayout
from pellucid.kernels.matmul.packed_layout import PackedLayout
from pellucid.weights.quant.format import Format

F32 = Format("F32", PackedLayout("f32", 32), FileLayout(1, 4))
F16 = Format("F16", PackedLayout("f16", 16), FileLayout(1, 2))
BF16 = Format("BF16", PackedLayout("bf16", 16), FileLayout(1, 2))
