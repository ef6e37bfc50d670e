"""The instruction set that kernels are compiled for, and the CPU features that the compiler may use.

``PELLUCID_ISA`` overrides the choice of the set; an unknown or unsupported name is an error. ``amx`` runs everywhere.
If the CPU or the operating system lacks tile registers, they are emulated, which is slow and meant for tests. For an
x86 set, features of better sets are disabled, because LLVM would otherwise use them. ``portable`` may use all features
of the host.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys

from msgspec import Struct
from msgspec.structs import replace

from pellucid.errors import InvalidRequest
from pellucid.kernels.core.host import Host, host


class Isa(Struct, frozen=True):
    """An instruction set: its name, a description, the CPU features that it needs, and the features disabled for it.

    Features have LLVM's names. A CPU needs all features of at least one group of ``needs``. A feature is disabled if
    its name starts with an entry of ``without``.
    """

    name: str
    description: str
    needs: tuple[frozenset[str], ...]
    without: tuple[str, ...] = ()
    sums: int = 16
    """Number of 16-lane sums that a matrix product keeps in registers, besides its operands."""
    lanes: int = 16
    """Number of 32-bit lanes of a register."""

    terms: int = 1
    """Number of 4-bit dot products that are added in 16 bits before their sum is widened; 1 if sums have 32 bits."""
    unpacks: bool = False
    """True if products of many tokens on vectors unpack weights once for all tokens (``matmul/int8_vectors.py``)."""
    tiles: bool = False
    """True if products of many tokens run on tile registers (``simd/tiles.py``)."""
    vectors: str = ""
    """Name of the set that vectors are computed with; "" if it is this set."""

    @property
    def vector_set(self) -> str:
        """Name of the set that vectors are computed with."""
        return self.vectors or self.name

    def runs_with(self, features: frozenset[str]) -> bool:
        """True if a CPU with these features can run the set."""
        return any(group <= features for group in self.needs)

    def compiled_with(self, features: frozenset[str]) -> frozenset[str]:
        """Return the features of a CPU that the compiler may use."""
        return frozenset(name for name in features if not name.startswith(self.without))


_AVX2 = frozenset({"avx2", "fma", "f16c"})
_VNNI = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512vnni"})
_TILES = frozenset({"amx-tile", "amx-int8"})
_WIDE = ("avx512", "avx10", "amx")

AMX = Isa(
    "amx", "tiles of 16 x 64 bytes, and 512-bit vpdpbusd", (_VNNI | _TILES,), tiles=True, vectors="avx512vnni"
)

# Best first. A CPU with AVX-512 has the 256-bit vpdpbusd in another encoding, so it can run and test ``avxvnni``.
# ``portable`` is for CPUs that have none of the other sets. It names no instruction and disables no feature: the
# compiler uses all features of the CPU.
KNOWN: tuple[Isa, ...] = (
    AMX,
    Isa("avx512vnni", "512-bit vpdpbusd", (_VNNI,), without=("amx",)),
    Isa(
        "avxvnni",
        "256-bit vpdpbusd",
        (_AVX2 | {"avxvnni"}, _AVX2 | {"avx512vnni", "avx512vl"}),
        without=_WIDE,
        sums=4,
        lanes=8,
    ),
    Isa(
        "avx2",
        "256-bit vpmaddubsw",
        (_AVX2,),
        without=(*_WIDE, "avxvnni"),
        sums=4,
        lanes=8,
        terms=8,
        unpacks=True,
    ),
    Isa("neon", "128-bit sdot, and usdot if available", (frozenset({"neon", "dotprod"}),), sums=4, lanes=4),
    Isa("portable", "plain LLVM vectors with all features of the host", (frozenset(),), sums=4),
)


class Target(Struct, frozen=True):
    """The compile target of kernels: an instruction set, and LLVM's description of the machine."""

    isa: Isa
    triple: str
    cpu: str
    machine: frozenset[str]
    """All features of the machine, including features that are disabled for the set."""
    lacks: frozenset[str] = frozenset()
    """Features known to LLVM that the machine does not have."""

    @property
    def features(self) -> frozenset[str]:
        """The features that the compiler may use."""
        return self.isa.compiled_with(self.machine)

    @property
    def feature_text(self) -> str:
        """The features as LLVM expects them. Disabled features are listed too, because the CPU's name implies them."""
        off = (self.machine | self.lacks) - self.features
        return ",".join([*sorted(f"-{name}" for name in off), *sorted(f"+{name}" for name in self.features)])

    def has(self, feature: str) -> bool:
        """True if the compiler may use a feature."""
        return feature in self.features

    @property
    def stream(self) -> tuple[tuple[int, int], ...]:
        """Prefetches for a stream from memory, as pairs: bytes ahead of the use, cache level (1 is L1).

        Zen cores track few outstanding lines for L1 and L2, so a line is prefetched twice: early into L3, then into L2.
        One thread on Zen 4 then reads 26 GB/s of Q4_1. With a single prefetch it reads 21 GB/s (into L2) or 16 GB/s
        (into L1). A single prefetch into L1 is best on Emerald Rapids.
        """
        return ((32768, 3), (8192, 2)) if self.cpu.startswith("znver") else ((16384, 1),)


@functools.cache
def _host() -> Host:
    """Return the host, without the tile features if Linux does not permit tiles."""
    found = host()
    if not found.features >= _TILES or _may_use_tiles():
        return found
    tiles = frozenset(name for name in found.features if name.startswith("amx"))
    return found._replace(features=found.features - tiles, lacks=found.lacks | tiles)


def _may_use_tiles() -> bool:
    """Ask Linux for permission to use tile registers, for all threads. Returns True if Linux grants it."""
    if not sys.platform.startswith("linux"):
        return False
    arch_prctl, request, tile_data = 158, 0x1023, 18  # Linux: Documentation/arch/x86/xstate.rst
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request, tile_data) == 0)


def host_features() -> frozenset[str]:
    """Return LLVM's names of the host CPU's features."""
    return _host().features


def possible() -> tuple[Isa, ...]:
    """Return the instruction sets that the host can run, best first."""
    return tuple(isa for isa in KNOWN if isa.runs_with(host_features()))


def emulated() -> tuple[Isa, ...]:
    """Return the instruction sets that the host can only emulate, with the vectors of its best set."""
    best = possible()[0]
    tiles = replace(
        best, name=AMX.name, description=f"tiles, emulated with {best.name}", tiles=True, vectors=best.name
    )
    return () if best == AMX else (tiles,)


def choose() -> Isa:
    """Return the instruction set to use: ``PELLUCID_ISA`` if it is given, else the best set that the host can run.

    Raises:
        InvalidRequest: ``PELLUCID_ISA`` names an unknown set, or a set that this machine cannot run.
    """
    name, available = os.environ.get("PELLUCID_ISA", ""), possible()
    if not name:
        return available[0]
    for isa in (*available, *emulated()):
        if isa.name == name:
            return isa
    names = ", ".join(isa.name for isa in available)
    raise InvalidRequest(
        f"PELLUCID_ISA={name}: this machine has {names}; unset it to use {available[0].name}"
    )


def target() -> Target:
    """Return the compile target of this process: the host, with the set that ``choose`` returns.

    Raises:
        InvalidRequest: as for ``choose``.
    """
    here = _host()
    return Target(choose(), here.triple, here.cpu, here.features, here.lacks)
