"""What the machine can do at most: how fast all threads together read memory.

The roof of a step that is bound by its weights is the time to read them once. ``roof.read`` reads a buffer of the
same size with the same threads and nothing else to do.
"""

from __future__ import annotations

from typing import Any

from pellucid.kernels.library import kernel
from pellucid.kernels.record import Address, Record

STRIP = 512  # bytes that a turn of the loop reads: eight vectors, eight independent sums


class Read(Record):
    data: Address
    strips: int  # of STRIP bytes
    out: Address  # (threads, 16) float32: the sums, so that no load can be left out


@kernel("roof.read", Read)
def build(simd: Any) -> Any:
    at, load, vload, splat = Read.at, simd.load_i64, simd.vload, simd.splat

    @simd.jit
    def body(record, step, thread, threads):
        data, strips = load(record + at.data), load(record + at.strips)
        a, b, c, d = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
        e, f, g, h = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
        for strip in range(strips * thread // threads, strips * (thread + 1) // threads):
            here = data + strip * STRIP
            a, b, c, d = a + vload(here), b + vload(here + 64), c + vload(here + 128), d + vload(here + 192)
            e, f, g, h = (
                e + vload(here + 256),
                f + vload(here + 320),
                g + vload(here + 384),
                h + vload(here + 448),
            )
        simd.vstore(load(record + at.out) + 64 * thread, a + b + c + d + e + f + g + h)

    return body
