"""The vector, memory and thread operations that kernel bodies use. Kernels receive this package as ``simd``.

Kernels are Python functions that Numba compiles. They work on addresses (int64) and on vectors of 16 float32 or int32
lanes; kernels that turn logits into probabilities use 16 float64 lanes. Only this package names instructions of a CPU.

The package has two levels. Most kernels call the functions below (``vload``, ``fma``, ``vsum``, ...). Some inner loops
are unrolled by a parameter of the kernel, such as the number of tokens in a tile. They are emitted through ``Emitter``
inside one ``@intrinsic``.

Importing this package imports Numba. Import it only to compile a kernel.
"""

from __future__ import annotations

from pellucid.kernels.core.compiler import jit
from pellucid.kernels.simd.arithmetic import (
    below_top,
    evens,
    fma,
    fma64,
    high_plane,
    keep,
    lane0,
    low_plane,
    lowest_bit,
    minus_sums,
    mul64,
    nearest,
    odds,
    select_below,
    select_below64,
    select_bits,
    sine_and_cosine,
    splat,
    splat64,
    thread_range,
    top_plane,
    vabs,
    vexp,
    vexp64,
    vmax,
    vmax_lane,
    vmin,
    vreciprocal,
    vsum,
    vsum64,
    widen64,
    zipped_high,
    zipped_low,
)
from pellucid.kernels.simd.emitter import ISA, LANES, STORED, Emitter, emitted_op, f16, f32, i8, i32, inner_loop, vec
from pellucid.kernels.simd.memory import (
    atomic_add,
    atomic_load,
    atomic_store,
    call_kernel,
    current_core,
    load_f16,
    load_f32,
    load_f64,
    load_i32,
    load_i64,
    load_u8,
    load_u16,
    load_u32,
    prefetch,
    relax,
    sleep_while,
    stack_memory,
    store_f16,
    store_f32,
    store_f64,
    store_i32,
    store_i64,
    store_u8,
    store_u32,
    vgather,
    vload,
    vstore,
    vstore64,
    vstore_f16,
    vstore_i8,
    wake,
    yield_core,
)
