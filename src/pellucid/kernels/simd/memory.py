"""Loads, stores and prefetches; atomics, sleeping and waking, calls of kernels. Addresses are int64."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils

from pellucid.kernels.simd.emitter import (
    LANES,
    TARGET,
    F32x16,
    F64x16,
    I32x16,
    emitted_op,
    f16,
    f32,
    f64,
    from_half,
    i8,
    i16,
    i32,
    i64,
    inner_loop,
    to_half,
    vec,
)

# Loads, stores and prefetches, of scalars and vectors. Addresses are int64.


def _scalar_load(stored, result, convert):
    return emitted_op(result, (types.int64,), lambda e, address: convert(e.b, e.load(address, stored, 1)))


load_i64 = _scalar_load(i64, types.int64, lambda b, v: v)
load_i32 = _scalar_load(i32, types.int64, lambda b, v: b.sext(v, i64))
load_u32 = _scalar_load(i32, types.uint32, lambda b, v: v)
load_u8 = _scalar_load(i8, types.int64, lambda b, v: b.zext(v, i64))
load_u16 = _scalar_load(i16, types.int64, lambda b, v: b.zext(v, i64))
load_f64 = _scalar_load(f64, types.float64, lambda b, v: v)
load_f32 = _scalar_load(f32, types.float32, lambda b, v: v)
load_f16 = _scalar_load(f16, types.float32, from_half)


def _scalar_store(kind, convert):
    return emitted_op(
        types.void, (types.int64, kind), lambda e, address, value: e.store(convert(e.b, value), address, 1)
    )


store_f32 = _scalar_store(types.float32, lambda b, v: v)
store_f16 = _scalar_store(types.float32, to_half)
store_f64 = _scalar_store(types.float64, lambda b, v: v)
store_i64 = _scalar_store(types.int64, lambda b, v: v)
store_u32 = _scalar_store(types.uint32, lambda b, v: v)
store_i32 = _scalar_store(types.int64, lambda b, v: b.trunc(v, i32))
store_u8 = _scalar_store(types.int64, lambda b, v: b.trunc(v, i8))

vload = emitted_op(F32x16, (types.int64,), lambda e, a: e.load(a, vec(f32), 2))
vstore = emitted_op(types.void, (types.int64, F32x16), lambda e, a, v: e.store(v, a))
vstore_f16 = emitted_op(types.void, (types.int64, F32x16), lambda e, a, v: e.store(to_half(e.b, v), a, 2))
vstore_i8 = emitted_op(types.void, (types.int64, I32x16), lambda e, a, v: e.store(e.b.trunc(v, vec(i8)), a, 1))
vstore64 = emitted_op(types.void, (types.int64, F64x16), lambda e, a, v: e.store(v, a, 8))
prefetch = emitted_op(types.void, (types.int64,), lambda e, address: e.prefetch(address))


def _gather(e, table, row_bytes, lane_bytes, rows):
    """Load lane i from row rows[i] of a table, ``lane_bytes`` * i bytes after the start of the row."""
    numbers, found = e.load(rows, vec(i32)), ir.Constant(vec(f32), ir.Undefined)
    for lane in range(LANES):
        row = e.b.sext(e.b.extract_element(numbers, ir.Constant(i32, lane)), i64)
        place = e.at(e.at(table, e.b.mul(row, row_bytes)), e.times(lane_bytes, lane))
        found = e.b.insert_element(found, e.load(place, f32), ir.Constant(i32, lane))
    return found


# 16 float32 from a table: (address of row 0, bytes between rows, bytes between lanes, address of 16 int32 rows).
vgather = emitted_op(F32x16, (types.int64,) * 4, _gather)


def stack_memory(nbytes: int):
    """Make an intrinsic that returns the address of ``nbytes`` on the caller's stack, aligned for vectors.

    The bytes are not set to zero. They are valid until the function that calls the intrinsic returns.
    """

    def emit(e):
        with e.b.goto_entry_block():
            place = e.b.alloca(ir.ArrayType(i8, nbytes))
        place.align = 64
        return e.b.ptrtoint(place, i64)

    return emitted_op(types.int64, (), emit)


# Primitives of the threads' loop: calls of kernels by address, atomics, sleeping and waking, the current core.


def _call_kernel(e, function, record, step, thread, threads):
    pointer = i8.as_pointer()
    kind = ir.FunctionType(i32, [pointer, pointer, i64, i64, i64, i64])
    result = e.b.bitcast(cgutils.alloca_once(e.b, i64, size=4), pointer)
    arguments = [result, result, record, step, thread, threads]
    return e.b.sext(e.b.call(e.b.inttoptr(function, kind.as_pointer()), arguments), i64)


def _word(e, address):
    return e.b.inttoptr(address, i64.as_pointer())


def _atomic_store(e, address, value):
    e.b.store_atomic(value, _word(e, address), "release", 8)


# Call a compiled kernel by its address: (address, record, step, thread, threads). Returns its status: 0 on success.
call_kernel = emitted_op(types.int64, (types.int64,) * 5, _call_kernel)
atomic_load = emitted_op(
    types.int64, (types.int64,), lambda e, address: e.b.load_atomic(_word(e, address), "acquire", 8)
)
atomic_store = inner_loop(2, _atomic_store)
# Add to the 64-bit word at an address and return its old value, with acquire and release ordering.
atomic_add = emitted_op(
    types.int64,
    (types.int64, types.int64),
    lambda e, address, value: e.b.atomic_rmw("add", _word(e, address), value, "acq_rel"),
)


def _relax(e):
    if TARGET.machine == "x86_64":
        e.call("llvm.x86.sse2.pause", ir.VoidType())
    elif TARGET.machine == "aarch64":
        e.call("llvm.aarch64.hint", ir.VoidType(), ir.Constant(i32, 1))


# Hint to the core that this is a spin loop.
relax = inner_loop(0, _relax)

# Threads sleep until a word of memory changes: futex(2) on Linux, WaitOnAddress on Windows. On macOS they use
# __ulock_wait, as C++'s library does, because os_sync_wait_on_address needs macOS 14.4. On other systems a thread can
# only yield its core.
_FUTEX = {"x86_64": 202, "aarch64": 98}.get(TARGET.machine)
_WAIT_PRIVATE, _WAKE_PRIVATE = 128, 129
_COMPARE_AND_WAIT, _WAKE_ALL = 1, 0x101  # macOS: UL_COMPARE_AND_WAIT, with ULF_WAKE_ALL
_NANOSECONDS = 1000  # in a microsecond
_MILLISECOND = 1_000_000  # nanoseconds


def _futex(e, address, operation: int, value, timeout):
    kind = ir.FunctionType(i64, [i64], var_arg=True)
    function = cgutils.get_or_insert_function(e.b.module, kind, "syscall")
    words = [ir.Constant(i64, _FUTEX), address, ir.Constant(i64, operation), value, timeout]
    e.b.call(function, [*words, ir.Constant(i64, 0), ir.Constant(i64, 0)])


def _yield_core(e):
    e.call("SwitchToThread" if TARGET.system == "windows" else "sched_yield", i32)


def _sleep_on_linux(e, address, value, nanoseconds):
    duration = cgutils.alloca_once(e.b, i64, size=2)
    e.b.store(ir.Constant(i64, 0), duration)
    e.b.store(nanoseconds, e.b.gep(duration, [ir.Constant(i64, 1)]))
    _futex(e, address, _WAIT_PRIVATE, value, e.b.ptrtoint(duration, i64))


def _sleep_on_darwin(e, address, value, nanoseconds):
    microseconds = e.b.trunc(e.b.udiv(nanoseconds, ir.Constant(i64, _NANOSECONDS)), i32)
    e.call("__ulock_wait", i32, ir.Constant(i32, _COMPARE_AND_WAIT), address, value, microseconds)


def _sleep_on_windows(e, address, value, nanoseconds):
    expected = cgutils.alloca_once(e.b, i64)
    e.b.store(value, expected)
    milliseconds = e.b.trunc(e.b.udiv(nanoseconds, ir.Constant(i64, _MILLISECOND)), i32)
    at_least = e.b.add(milliseconds, ir.Constant(i32, 1))
    e.call("WaitOnAddress", i32, address, e.b.ptrtoint(expected, i64), ir.Constant(i64, 4), at_least)


def _wake_on_linux(e, address):
    _futex(e, address, _WAKE_PRIVATE, ir.Constant(i64, 1 << 30), ir.Constant(i64, 0))


def _wake_on_darwin(e, address):
    e.call("__ulock_wake", i32, ir.Constant(i32, _WAKE_ALL), address, ir.Constant(i64, 0))


def _wake_on_windows(e, address):
    e.call("WakeByAddressAll", ir.VoidType(), address)


_SYSTEMS = {
    "linux": (_sleep_on_linux, _wake_on_linux),
    "darwin": (_sleep_on_darwin, _wake_on_darwin),
    "windows": (_sleep_on_windows, _wake_on_windows),
}
if _FUTEX is None:  # the number of the system call is not known
    del _SYSTEMS["linux"]
_sleep_while, _wake = _SYSTEMS.get(
    TARGET.system, (lambda e, address, value, nanoseconds: _yield_core(e), lambda e, address: None)
)
_CURRENT_CORE = {"linux": "sched_getcpu", "windows": "GetCurrentProcessorNumber"}


def _current_core(e):
    function = _CURRENT_CORE.get(TARGET.system)
    return e.b.sext(e.call(function, i32), i64) if function else ir.Constant(i64, -1)


# Sleep while the 32-bit word at ``address`` is ``value``, until ``wake`` or the timeout: (address, value, nanoseconds).
# May return early.
sleep_while = inner_loop(3, _sleep_while)
# Wake all threads that sleep on the word at an address.
wake = inner_loop(1, _wake)
# Yield the core to another thread.
yield_core = inner_loop(0, _yield_core)
# The number of the current core, or -1 if the system does not report it.
current_core = emitted_op(types.int64, (), _current_core)
