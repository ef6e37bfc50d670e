"""Conversions between half precision and float32, of numbers and of vectors.

x86-64 processors without F16C have no instructions for them. LLVM then calls functions that not every process has, so
they are computed with integers.

Source of the method: F. Giesen, "Float->half variants" (public domain, 2012).
"""

from __future__ import annotations

from llvmlite import ir

from pellucid.kernels.simd.types import TARGET, f16, f32, i16, i32, vec

CONVERTS = TARGET.machine == "aarch64" or TARGET.has("f16c")
_EXPONENT = 0x7C00 << 13  # the exponent of infinities and NaN, where a float32 has it
_INFINITY, _SIGN = 0x7F800000, 0x80000000
_OVERFLOW, _NORMAL = 0x47800000, 0x38800000  # 2**16 and 2**-14 as float32
_TO_DENORMAL = 0x3F000000  # 0.5: adding it rounds a float32 to multiples of 2**-24


def from_half(b, value):
    """Return halves as float32, exactly."""
    if CONVERTS:
        return b.fpext(value, _like(value, f32))
    h = b.zext(b.bitcast(value, _like(value, i16)), _like(value, i32))
    number = b.shl(b.and_(h, _all(h, i32, 0x7FFF)), _all(h, i32, 13))
    scaled = b.fmul(b.bitcast(number, _like(h, f32)), _all(h, f32, 2.0**112))
    bits = b.bitcast(scaled, h.type)
    special = b.icmp_unsigned(">=", number, _all(h, i32, _EXPONENT))
    bits = b.select(special, b.or_(bits, _all(h, i32, _INFINITY)), bits)
    sign = b.shl(b.and_(h, _all(h, i32, 0x8000)), _all(h, i32, 16))
    return b.bitcast(b.or_(bits, sign), _like(h, f32))


def to_half(b, value):
    """Return float32 numbers as halves, rounded to nearest, ties to even."""
    if CONVERTS:
        return b.fptrunc(value, _like(value, f16))
    x = b.bitcast(value, _like(value, i32))
    sign = b.and_(x, _all(x, i32, _SIGN))
    x = b.xor(x, sign)
    odd = b.and_(b.lshr(x, _all(x, i32, 13)), _all(x, i32, 1))
    # The exponent's bias changes by 112; 0xFFF and the last bit round.
    normal = b.lshr(b.add(b.add(x, _all(x, i32, (-112 << 23) + 0xFFF)), odd), _all(x, i32, 13))
    moved = b.fadd(b.bitcast(x, _like(x, f32)), _all(x, f32, 0.5))
    small = b.sub(b.bitcast(moved, x.type), _all(x, i32, _TO_DENORMAL))
    bits = b.select(b.icmp_unsigned("<", x, _all(x, i32, _NORMAL)), small, normal)
    nan = b.icmp_unsigned(">", x, _all(x, i32, _INFINITY))
    large = b.select(nan, _all(x, i32, 0x7E00), _all(x, i32, 0x7C00))
    bits = b.select(b.icmp_unsigned(">=", x, _all(x, i32, _OVERFLOW)), large, bits)
    bits = b.or_(bits, b.lshr(sign, _all(x, i32, 16)))
    return b.bitcast(b.trunc(bits, _like(x, i16)), _like(x, f16))


def _like(value, element):
    """Return the type of ``element`` with as many lanes as ``value``."""
    return vec(element, value.type.count) if isinstance(value.type, ir.VectorType) else element


def _all(value, element, number):
    """Return a constant with as many lanes as ``value``."""
    kind = _like(value, element)
    return ir.Constant(kind, [number] * kind.count if isinstance(kind, ir.VectorType) else number)
