"""F32, F16, BF16: plain floating point, one value a block."""

from __future__ import annotations

from pellucid.kernels.packed import Packed
from pellucid.kernels.stored import Stored
from pellucid.weights.quant import Format

F32 = Format("F32", Packed("f32", 32), Stored(1, 4))
F16 = Format("F16", Packed("f16", 16), Stored(1, 2))
BF16 = Format("BF16", Packed("bf16", 16), Stored(1, 2))
