"""The vector types, for LLVM and for Numba.

A vector has 16 lanes on all hardware. LLVM splits it if registers are narrower. Every sum therefore has the same order
on every machine, and the same bits on every machine with a fused multiply-add.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core.datamodel.models import PrimitiveModel
from numba.extending import register_model

from pellucid.kernels.core import compiler

LANES = 16
TARGET = compiler.TARGET
ISA = TARGET.isa

i8, i16, i32, i64 = (ir.IntType(n) for n in (8, 16, 32, 64))
f16, f32, f64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
STORED = {"f32": f32, "f16": f16, "bf16": i16}
KERNEL_SIGNATURE = types.void(types.int64, types.int64, types.int64, types.int64)


def vec(element, lanes=LANES):
    return ir.VectorType(element, lanes)


class VectorType(types.Type):
    """Numba's type of a vector of ``LANES`` elements."""

    def __init__(self, element: str) -> None:
        self.element = element
        super().__init__(f"{element}x{LANES}")


F32x16, I32x16, F64x16 = VectorType("f32"), VectorType("i32"), VectorType("f64")


@register_model(VectorType)
class VectorModel(PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, vec({"f32": f32, "i32": i32, "f64": f64}[fe_type.element]))
