"""Which instruction set the kernels are compiled for.

``PELLUCID_ISA`` overrides the choice; an unknown or impossible name is an error, never ignored.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

from pellucid.errors import InvalidRequest


@dataclass(frozen=True)
class Isa:
    """An instruction set: its name, the CPU features it needs, and what it is."""

    name: str
    needs: frozenset[str]
    description: str
    tile: int = 8
    """Tokens that may share a load of the weights in a matrix product: what the registers hold."""


# Best first.
KNOWN = (
    Isa("avx512vnni", frozenset({"avx512f", "avx512bw", "avx512vl", "avx512vnni"}), "512-bit vpdpbusd"),
    Isa("avxvnni", frozenset({"avx2", "fma", "avxvnni"}), "256-bit vpdpbusd", tile=4),
    Isa("portable", frozenset(), "plain LLVM vectors, whatever the host makes of them", tile=4),
)


@functools.cache
def host_features() -> frozenset[str]:
    """The names of the host CPU's features, as LLVM calls them."""
    from llvmlite import binding

    return frozenset(name for name, present in binding.get_host_cpu_features().items() if present)


def choose() -> Isa:
    """The instruction set to use: ``PELLUCID_ISA`` if set, else the best that the host has.

    Raises:
        InvalidRequest: ``PELLUCID_ISA`` names an unknown set, or one that this CPU does not have.
    """
    wanted = os.environ.get("PELLUCID_ISA", "")
    possible = [isa for isa in KNOWN if isa.needs <= host_features()]
    if not wanted:
        return possible[0]
    for isa in possible:
        if isa.name == wanted:
            return isa
    names = ", ".join(isa.name for isa in possible)
    raise InvalidRequest(
        f"PELLUCID_ISA={wanted}: this machine has {names}; unset it to use {possible[0].name}"
    )


@functools.cache
def stream_cache() -> int:
    """The cache, 1 the nearest, into which a stream from memory is asked for ahead of its use.

    Zen cores wait for few lines at a time on behalf of the nearest cache: asking for weights in the second made
    SmolLM2 decode at 303 tokens/s instead of 218 on Zen 4, and at 463 instead of 480 on Emerald Rapids.
    """
    from llvmlite import binding

    return 2 if binding.get_host_cpu_name().startswith("znver") else 1
