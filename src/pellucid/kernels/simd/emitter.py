"""``Emitter`` emits LLVM instructions for kernels; ``emitted_op`` and ``inner_loop`` make Numba intrinsics of them."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pellucid.kernels.simd.half import from_half
from pellucid.kernels.simd.types import ISA, LANES, TARGET, f32, i8, i32, i64, vec

# The constraint letters that inline assembly uses for vector registers.
_REGISTER = {"avx512vnni": "v", "avxvnni": "x", "avx2": "x", "neon": "w"}
# Byte lookup in a 16-byte table, one register at a time: (table, indices) -> entries.
_LOOKUP = {
    "avx512vnni": "llvm.x86.avx512.pshuf.b.512",
    "avxvnni": "llvm.x86.avx2.pshuf.b",
    "avx2": "llvm.x86.avx2.pshuf.b",
    "neon": "llvm.aarch64.neon.tbl1.v16i8",
}


class Emitter:
    """Emits the instructions that kernels are built from. Addresses are i64 values."""

    def __init__(self, builder) -> None:
        self.b = builder

    def const(self, n: int):
        return ir.Constant(i64, n)

    def at(self, address, offset):
        """Return address + offset. ``offset`` is an i64 value or a Python integer."""
        if isinstance(offset, int):
            if offset == 0:
                return address
            offset = self.const(offset)
        return self.b.add(address, offset)

    def times(self, a, n: int):
        return self.b.mul(a, self.const(n))

    def load(self, address, kind, align: int = 4):
        pointer = self.b.inttoptr(address, kind.as_pointer())
        return self.b.load(pointer, align=align)

    def store(self, value, address, align: int = 4) -> None:
        pointer = self.b.inttoptr(address, value.type.as_pointer())
        self.b.store(value, pointer, align=align)

    def splat(self, value, lanes: int = LANES):
        kind = vec(value.type, lanes)
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(i32, 0))
        return self.b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(vec(i32, lanes), [0] * lanes))

    def fill(self, kind, value, lanes: int = LANES):
        return ir.Constant(vec(kind, lanes), [value] * lanes)

    def call(self, name: str, result, *args):
        kind = ir.FunctionType(result, [a.type for a in args])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, kind, name), args)

    def fma(self, x, y, z):
        """Return x * y + z, rounded once."""
        return self.call("llvm.fma.v16f32", x.type, x, y, z)

    def widen(self, value, kind: str):
        """Convert stored floats of ``kind`` ("f16", 16 "bf16" as i16, "f32") to float32."""
        if kind == "f16":
            return from_half(self.b, value)
        if kind == "bf16":
            wide = self.b.shl(self.b.zext(value, vec(i32)), self.fill(i32, 16))
            return self.b.bitcast(wide, vec(f32))
        return value

    def lanes(self, value, which):
        """Return the lanes numbered ``which`` as a vector."""
        nothing = ir.Constant(value.type, ir.Undefined)
        return self.b.shuffle_vector(value, nothing, ir.Constant(vec(i32, len(which)), list(which)))

    def registers(self, value):
        """Split a vector of integers or float32 into vectors that each fill one register."""
        lanes = 32 * ISA.lanes // getattr(value.type.element, "width", 32)
        if value.type.count <= lanes:
            return [value]
        return [self.lanes(value, range(at, at + lanes)) for at in range(0, value.type.count, lanes)]

    def joined(self, pieces):
        """Concatenate vectors: the inverse of ``registers``."""
        while len(pieces) > 1:
            lanes = ir.Constant(vec(i32, 2 * pieces[0].type.count), list(range(2 * pieces[0].type.count)))
            pieces = [self.b.shuffle_vector(*two, lanes) for two in zip(pieces[::2], pieces[1::2])]
        return pieces[0]

    def together(self, values):
        """Return the same values, and make the compiler compute all values before it uses any.

        This emits no instruction. It keeps several sums interleaved: without it, the compiler saves registers by
        finishing one sum after the other. On sets with 16 registers it also stops the compiler from moving loads to
        before this point, because values loaded early would spill the sums.
        """
        if ISA.vector_set not in _REGISTER:
            return values
        pieces = [self.registers(value) for value in values]
        flat = [piece for some in pieces for piece in some]
        kinds = [piece.type for piece in flat]
        places = ["=" + _REGISTER[ISA.vector_set]] * len(flat) + [str(i) for i in range(len(flat))]
        few = ISA.lanes == 8  # these sets have 16 registers
        one = len(flat) == 1  # a single output is not wrapped in a structure
        kind = ir.FunctionType(kinds[0] if one else ir.LiteralStructType(kinds), kinds)
        nothing = ir.InlineAsm(kind, "", ",".join(places + ["~{memory}"] * few), side_effect=few)
        result = self.b.call(nothing, flat)
        same = iter([result] if one else [self.b.extract_value(result, i) for i in range(len(flat))])
        return [self.joined([next(same) for _ in some]) for some in pieces]

    def lookup(self, table, index):
        """Replace every byte of ``index`` (16 x i32, bytes 0 to 15) by its entry of ``table`` (16 unsigned bytes)."""
        if ISA.vector_set in _LOOKUP:
            name, found = _LOOKUP[ISA.vector_set], []
            for piece in self.registers(index):
                places = self.b.bitcast(piece, vec(i8, 4 * ISA.lanes))
                entries = ir.Constant(places.type, list(table) * (ISA.lanes // 4))
                found.append(self.b.bitcast(self.call(name, places.type, entries, places), piece.type))
            return self.joined(found)
        entries = [self.fill(i32, entry * 0x01010101) for entry in table]
        for bit in range(4):  # this bit of the index selects one of each two neighbouring entries
            chosen = self.b.and_(self.b.lshr(index, self.fill(i32, bit)), self.fill(i32, 0x01010101))
            chosen = self.b.mul(chosen, self.fill(i32, 255))
            entries = [
                self.b.xor(even, self.b.and_(chosen, self.b.xor(even, odd)))
                for even, odd in zip(entries[::2], entries[1::2])
            ]
        return entries[0]

    def prefetch(self, address, nearest: int = 1) -> None:
        """Prefetch the cache line at ``address`` into cache level ``nearest`` (1: L1). Never faults."""
        pointer = self.b.inttoptr(address, i8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, i32, i32, i32])
        function = cgutils.get_or_insert_function(self.b.module, kind, "llvm.prefetch.p0")
        self.b.call(function, [pointer, ir.Constant(i32, 0), ir.Constant(i32, 4 - nearest), ir.Constant(i32, 1)])

    def prefetch_scattered(self, address, size, ahead, further, *, twice: bool) -> None:
        """Prefetch ``size`` bytes that lie ``ahead`` bytes after ``address``: the next part of a scattered stream.

        With ``twice``, and if the target prefetches streams twice, also prefetch the later part that lies ``further``
        bytes after ``address``.
        """
        for line in range(0, size, 64):
            place = self.at(address, line)
            if twice and len(TARGET.stream) > 1:
                self.prefetch(self.b.add(place, further), TARGET.stream[0][1])
            self.prefetch(self.b.add(place, ahead), TARGET.stream[-1][1])

    def prefetch_further(self, address) -> None:
        """Prefetch the cache lines of a stream at the target's distances after ``address``."""
        for ahead, nearest in TARGET.stream:
            self.prefetch(self.at(address, ahead), nearest)


def emitted_op(result, operands, emit):
    """Make an intrinsic of ``emit(emitter, *operands)``; ``result`` and ``operands`` are Numba types."""
    names = ", ".join(f"a{i}" for i in range(len(operands)))
    scope = {"emit": emit, "result": result, "operands": operands, "Emitter": Emitter}
    source = (
        f"def op(typingctx, {names}):\n"
        "    def codegen(context, builder, sig, args):\n"
        "        value = emit(Emitter(builder), *args)\n"
        "        return context.get_dummy_value() if value is None else value\n"
        "    return result(*operands), codegen\n"
    )
    exec(source, scope)  # Numba requires one named parameter for each operand
    return intrinsic(scope["op"])


def inner_loop(operand_count, emit):
    """Make an intrinsic of ``emit(emitter, *operands)`` without a result. The operands are int64."""
    return emitted_op(types.void, (types.int64,) * operand_count, emit)
