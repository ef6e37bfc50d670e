"""F32, F16, BF16: plain floating point, one value a block."""

from __future__ import annotations

from pellucid.kernels.packed import Packed
from pellucid.weights.quant import Format

F32 = Format("F32", 1, 4, Packed("f32", 32))
F16 = Format("F16", 1, 2, Packed("f16", 16))
BF16 = Format("BF16", 1, 2, Packed("bf16", 16))
