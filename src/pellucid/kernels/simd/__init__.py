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
from pellucid.kernels.simd.arithmetic import *
from pellucid.kernels.simd.emitter import ISA, LANES, STORED, Emitter, emitted_op, f16, f32, i8, i32, inner_loop, vec
from pellucid.kernels.simd.memory import *
