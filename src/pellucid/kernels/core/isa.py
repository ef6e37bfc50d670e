"""The instruction set that kernels are compiled for, and the CPU features that the compiler may use.

``PELLUCID_ISA`` overrides the choice of the set; an unknown or unsupported name is an error. ``amx`` runs everywhere:
where the CPU or the system lacks it, its tiles are emulated, slowly, for tests. For an x86 set, features of better sets
are disabled, because LLVM would use them by itself; ``portable`` may use all that the host has.
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
    """An instruction set: its name, a description, the CPU features it needs, and those that are disabled for it.

    Features have LLVM's names. A CPU needs all features of one group of ``needs``. Every feature whose name starts with
    one of ``without`` is disabled.
    """

    name: str
    description: str
    needs: tuple[frozenset[str], ...]
    without: tuple[str, ...] = ()
    sums: int = 16
    """The number of 16-lane sums that a matrix product keeps in registers, besides its operands."""
    lanes: int = 16
    """32-bit lanes of a register."""

    terms: int = 1
    """Dot products of 4-bit weights that are added in 16 bits before their sum is widened; 1 if sums have 32 bits."""
    unpacks: bool = False
    """Whether products of many tokens on vectors unpack weights once for all of them (``matmul/int8_vectors.py``)."""
    tiles: bool = False
    """Whether products of many tokens run on tile registers (``simd/tiles.py``)."""
    vectors: str = ""
    """The set that vectors are computed with, if it is another one."""

    @property
    def vector_set(self) -> str:
        """The name of the set that vectors are computed with."""
        return self.vectors or self.name

    def runs_with(self, features: frozenset[str]) -> bool:
        """Whether a CPU with these features can run the set."""
        return any(group <= features for group in self.needs)

    def compiled_with(self, features: frozenset[str]) -> frozenset[str]:
        """The features of a CPU that the compiler may use."""
        return frozenset(name for name in features if not name.startswith(self.without))


_AVX2 = frozenset({"avx2", "fma", "f16c"})
_VNNI = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512vnni"})
_TILES = frozenset({"amx-tile", "amx-int8"})
_WIDE = ("avx512", "avx10", "amx")

AMX = Isa(
    "amx", "tiles of 16 x 64 bytes, and 512-bit vpdpbusd", (_VNNI | _TILES,), tiles=True, vectors="avx512vnni"
)

# Best first. A CPU with AVX-512 has the 256-bit vpdpbusd in another encoding, so it can run and test ``avxvnni``.
# ``portable`` is for CPUs that have none of the other sets. It names no instruction and disables no feature, so the
# compiler uses whatever the CPU has.
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
    Isa("neon", "128-bit sdot, and usdot where it is", (frozenset({"neon", "dotprod"}),), sums=4, lanes=4),
    Isa("portable", "plain LLVM vectors, whatever the host makes of them", (frozenset(),), sums=4),
)


class Target(Struct, frozen=True):
    """What kernels are compiled for: an instruction set, and the machine in LLVM's terms."""

    isa: Isa
    triple: str
    cpu: str
    machine: frozenset[str]
    """All features of the machine, including those that are disabled for the set."""
    lacks: frozenset[str] = frozenset()
    """Features known to LLVM that the machine does not have."""

    @property
    def features(self) -> frozenset[str]:
        """The features that the compiler may use."""
        return self.isa.compiled_with(self.machine)

    @property
    def feature_text(self) -> str:
        """The features as LLVM expects them. Disabled ones are listed, because the CPU's name implies features."""
        off = (self.machine | self.lacks) - self.features
        return ",".join([*sorted(f"-{name}" for name in off), *sorted(f"+{name}" for name in self.features)])

    def has(self, feature: str) -> bool:
        """Whether the compiler may use a feature."""
        return feature in self.features

    @property
    def stream(self) -> tuple[tuple[int, int], ...]:
        """The prefetches of a stream from memory: (bytes ahead of its use, cache level; 1 is L1).

        Zen cores track few outstanding lines for L1 and L2, so a line is prefetched twice: early into L3, then into L2.
        With this, one thread on Zen 4 reads 26 GB/s of Q4_1; with one prefetch into L2 21 GB/s, into L1 16 GB/s. One
        prefetch into L1 is best on Emerald Rapids.
        """
        return ((32768, 3), (8192, 2)) if self.cpu.startswith("znver") else ((16384, 1),)


@functools.cache
def _host() -> Host:
    """The host, without tiles that Linux does not give."""
    found = host()
    if not found.features >= _TILES or _may_use_tiles():
        return found
    tiles = frozenset(name for name in found.features if name.startswith("amx"))
    return found._replace(features=found.features - tiles, lacks=found.lacks | tiles)


def _may_use_tiles() -> bool:
    """Ask Linux for the tile registers, which a process has only on request. It is granted to all of its threads."""
    if not sys.platform.startswith("linux"):
        return False
    arch_prctl, request, tile_data = 158, 0x1023, 18  # Linux: Documentation/arch/x86/xstate.rst
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request, tile_data) == 0)


def host_features() -> frozenset[str]:
    """LLVM's names of the host CPU's features."""
    return _host().features


def possible() -> tuple[Isa, ...]:
    """The instruction sets that the host can run, best first."""
    return tuple(isa for isa in KNOWN if isa.runs_with(host_features()))


def emulated() -> tuple[Isa, ...]:
    """The instruction sets that the host can only emulate, with the vectors of its best set."""
    best = possible()[0]
    tiles = replace(
        best, name=AMX.name, description=f"tiles, emulated with {best.name}", tiles=True, vectors=best.name
    )
    return () if best == AMX else (tiles,)


def choose() -> Isa:
    """The instruction set to use: ``PELLUCID_ISA`` if it is set, else the best one that the host can run.

    Raises:
        InvalidRequest: ``PELLUCID_ISA`` names an unknown set, or one that this CPU does not have.
    """
    wanted, here = os.environ.get("PELLUCID_ISA", ""), possible()
    if not wanted:
        return here[0]
    for isa in (*here, *emulated()):
        if isa.name == wanted:
            return isa
    names = ", ".join(isa.name for isa in here)
    raise InvalidRequest(f"PELLUCID_ISA={wanted}: this machine has {names}; unset it to use {here[0].name}")


def target() -> Target:
    """What this process compiles for: the host, with the set that ``choose`` returns.

    Raises:
        InvalidRequest: as for ``choose``.
    """
    here = _host()
    return Target(choose(), here.triple, here.cpu, here.features, here.lacks)
