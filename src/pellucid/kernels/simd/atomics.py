"""Primitives of the threads' loop: calls of kernels by address, atomics, sleeping and waking, the current core."""

from __future__ import annotations

import platform
import sys

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pellucid.kernels.simd.emitter import Emitter
from pellucid.kernels.simd.types import i8, i32, i64


@intrinsic
def call_kernel(typingctx, function, record, step, thread, threads):
    """Call a compiled kernel by its address. Returns its status: 0 on success."""

    def codegen(context, builder, sig, args):
        pointer = i8.as_pointer()
        kind = ir.FunctionType(i32, [pointer, pointer, i64, i64, i64, i64])
        nothing = cgutils.alloca_once(builder, i64, size=4)
        where = builder.bitcast(nothing, pointer)
        function = builder.inttoptr(args[0], kind.as_pointer())
        return builder.sext(builder.call(function, [where, where, *args[1:]]), i64)

    return types.int64(*[types.int64] * 5), codegen


@intrinsic
def atomic_load(typingctx, address):
    def codegen(context, builder, sig, args):
        return builder.load_atomic(builder.inttoptr(args[0], i64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def atomic_store(typingctx, address, value):
    def codegen(context, builder, sig, args):
        builder.store_atomic(args[1], builder.inttoptr(args[0], i64.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def atomic_add(typingctx, address, value):
    """Add to the 64-bit word at ``address`` and return its old value, with acquire and release ordering."""

    def codegen(context, builder, sig, args):
        pointer = builder.inttoptr(args[0], i64.as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "acq_rel")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def relax(typingctx):
    """Hint to the core that this is a spin loop."""

    def codegen(context, builder, sig, args):
        triple = str(builder.module.triple)
        if triple.startswith(("x86_64", "i686")):
            Emitter(builder).call("llvm.x86.sse2.pause", ir.VoidType())
        elif triple.startswith(("aarch64", "arm64")):
            builder.call(
                cgutils.get_or_insert_function(
                    builder.module, ir.FunctionType(ir.VoidType(), [i32]), "llvm.aarch64.hint"
                ),
                [ir.Constant(i32, 1)],
            )
        return context.get_dummy_value()

    return types.void(), codegen


# On Linux a thread can sleep until a word of memory changes: futex(2). Elsewhere it can only yield its core.
_FUTEX = (
    {"x86_64": 202, "AMD64": 202, "aarch64": 98}.get(platform.machine()) if sys.platform == "linux" else None
)
_WAIT_PRIVATE, _WAKE_PRIVATE = 128, 129


def _futex(builder, address, operation: int, value, timeout):
    kind = ir.FunctionType(i64, [i64], var_arg=True)
    function = cgutils.get_or_insert_function(builder.module, kind, "syscall")
    words = [ir.Constant(i64, _FUTEX), address, ir.Constant(i64, operation), value, timeout]
    builder.call(function, [*words, ir.Constant(i64, 0), ir.Constant(i64, 0)])


@intrinsic
def sleep_while(typingctx, address, value, nanoseconds):
    """Sleep while the 32-bit word at ``address`` is ``value``, until ``wake`` or the timeout. May return early."""

    def codegen(context, builder, sig, args):
        address, value, nanoseconds = args
        if _FUTEX is None:
            Emitter(builder).call("SwitchToThread" if sys.platform == "win32" else "sched_yield", i32)
        else:
            duration = cgutils.alloca_once(builder, i64, size=2)
            builder.store(ir.Constant(i64, 0), duration)
            builder.store(nanoseconds, builder.gep(duration, [ir.Constant(i64, 1)]))
            _futex(builder, address, _WAIT_PRIVATE, value, builder.ptrtoint(duration, i64))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def wake(typingctx, address):
    """Wake all threads that sleep on the word at ``address``."""

    def codegen(context, builder, sig, args):
        if _FUTEX is not None:
            _futex(builder, args[0], _WAKE_PRIVATE, ir.Constant(i64, 1 << 30), ir.Constant(i64, 0))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def yield_core(typingctx):
    """Yield the core to another thread."""

    def codegen(context, builder, sig, args):
        Emitter(builder).call("SwitchToThread" if sys.platform == "win32" else "sched_yield", i32)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def current_core(typingctx):
    """Return the number of the current core, or -1 if the system does not report it."""

    def codegen(context, builder, sig, args):
        if sys.platform != "linux":
            return ir.Constant(i64, -1)
        return builder.sext(Emitter(builder).call("sched_getcpu", i32), i64)

    return types.int64(), codegen
