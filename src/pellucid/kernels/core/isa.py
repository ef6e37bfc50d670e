"""The instruction sets that kernels are compiled for, and the target of this process.

A ``Target`` is all that compiled code depends on, besides its sources: the system, the processor's architecture, an
instruction set, the optional features of the set that the processor has, and a tuning. Processors with equal targets
run the same object files, so kernels can be compiled on one machine for all others.

``PELLUCID_ISA`` overrides the choice of the set; an unknown or unsupported name is an error. ``amx`` runs everywhere.
If the CPU or the operating system lacks tile registers, they are emulated, which is slow and meant for tests.
"""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from pellucid.errors import InvalidRequest
from pellucid.kernels.core.host import Host, host


class Variant(NamedTuple):
    """A variant of an instruction set: the optional features that it uses, and whether it is tuned for AMD's Zen."""

    options: frozenset[str] = frozenset()
    zen: bool = False


class Isa(Struct, frozen=True):
    """An instruction set: its name, a description, the CPU features that it needs, and its variants, best first.

    Features have LLVM's names. A CPU needs all features of at least one group of ``needs``. The compiler may use the
    features of the first group, the features that LLVM's processor ``cpu`` has, and the options of the variant.
    """

    name: str
    description: str
    needs: tuple[frozenset[str], ...]
    cpu: str
    variants: tuple[Variant, ...] = (Variant(),)
    sums: int = 16
    """Number of 16-lane sums that a matrix product keeps in registers, besides its operands."""
    lanes: int = 16
    """Number of 32-bit lanes of a register."""

    terms: int = 1
    """Number of 4-bit dot products that are added in 16 bits before their sum is widened; 1 if sums have 32 bits."""
    unpacks: bool = False
    """True if products of many tokens on vectors unpack weights once for all tokens (``matmul/many_tokens.py``)."""
    tiles: bool = False
    """True if products of many tokens run on tile registers (``simd/tiles.py``)."""
    vectors: str = ""
    """Name of the set that vectors are computed with; "" if it is this set."""

    @property
    def vector_set(self) -> str:
        """Name of the set that vectors are computed with."""
        return self.vectors or self.name

    @property
    def optional(self) -> frozenset[str]:
        """The optional features of all variants."""
        return frozenset().union(*(variant.options for variant in self.variants))

    def runs_with(self, features: frozenset[str]) -> bool:
        """True if a CPU with these features can run the set."""
        return any(group <= features for group in self.needs)


_LEVEL_3 = frozenset({"avx2", "fma", "f16c", "bmi", "bmi2", "lzcnt", "movbe"})  # x86-64-v3
_LEVEL_4 = _LEVEL_3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}  # x86-64-v4
_VNNI = _LEVEL_4 | {"avx512vnni"}
_TILES = frozenset({"amx-tile", "amx-int8"})
_BF16, _VEX, _I8MM = frozenset({"avx512bf16"}), frozenset({"avxvnni"}), frozenset({"i8mm"})

AMX = Isa(
    "amx",
    "tiles of 16 x 64 bytes, and 512-bit vpdpbusd",
    (_VNNI | _TILES,),
    "x86-64-v4",
    (Variant(_BF16), Variant()),
    tiles=True,
    vectors="avx512vnni",
)
PORTABLE = Isa("portable", "plain LLVM vectors", (frozenset(),), "x86-64-v2", sums=4)

# Best first. A CPU with AVX-512 has the 256-bit vpdpbusd in another encoding, so it can run and test ``avxvnni``.
# ``portable`` names no instruction, and runs on every CPU that NumPy's wheels run on.
KNOWN: tuple[Isa, ...] = (
    AMX,
    Isa("avx512vnni", "512-bit vpdpbusd", (_VNNI,), "x86-64-v4", (Variant(_BF16, zen=True), Variant(_BF16), Variant())),
    Isa(
        "avxvnni",
        "256-bit vpdpbusd",
        (_LEVEL_3 | _VEX, _VNNI),
        "x86-64-v3",
        (Variant(_VEX), Variant()),
        sums=4,
        lanes=8,
    ),
    Isa(
        "avx2",
        "256-bit vpmaddubsw",
        (_LEVEL_3,),
        "x86-64-v3",
        (Variant(zen=True), Variant()),
        sums=4,
        lanes=8,
        terms=8,
        unpacks=True,
    ),
    Isa(
        "neon",
        "128-bit sdot, and usdot if available",
        (frozenset({"neon", "dotprod"}),),
        "generic",
        (Variant(_I8MM), Variant()),
        sums=4,
        lanes=4,
    ),
    PORTABLE,
)

_TRIPLES = {
    ("linux", "x86_64"): "x86_64-unknown-linux-gnu",
    ("darwin", "x86_64"): "x86_64-unknown-linux-gnu",  # the same calling convention; objects are ELF everywhere
    ("windows", "x86_64"): "x86_64-pc-windows-msvc-elf",
    ("linux", "aarch64"): "aarch64-unknown-linux-gnu",
    ("darwin", "aarch64"): "aarch64-unknown-linux-gnu",
    ("windows", "aarch64"): "aarch64-unknown-linux-gnu",
}
HOST_TRIPLE = ""
"""The triple of an architecture without an entry in ``_TRIPLES``: LLVM then compiles for the host."""


class Target(Struct, frozen=True):
    """The compile target of kernels. ``system`` and ``machine`` are the names that ``host.py`` gives."""

    isa: Isa
    system: str
    machine: str
    variant: Variant = Variant()

    @property
    def name(self) -> str:
        """A name that differs between all targets whose code differs."""
        emulated = f"on-{self.isa.vectors}" if self.isa.tiles and not self.has("amx-int8") else ""
        options, tuning = sorted(self.variant.options), "zen" if self.variant.zen else ""
        parts = (self.system, self.machine, self.isa.name, emulated, *options, tuning)
        return "-".join(part for part in parts if part)

    @property
    def triple(self) -> str:
        """LLVM's triple. Objects are ELF files on all systems; on Windows they have its calling convention."""
        return _TRIPLES.get((self.system, self.machine), HOST_TRIPLE)

    @property
    def cpu(self) -> str:
        """LLVM's name of the oldest processor of the set."""
        return self.isa.cpu if self.machine == "x86_64" else "generic"

    @property
    def features(self) -> frozenset[str]:
        """The features that the compiler may use, besides the features that LLVM's processor implies."""
        return self.isa.needs[0] - self.isa.optional | self.variant.options

    @property
    def feature_text(self) -> str:
        """The features as LLVM expects them."""
        # LLVM splits 512-bit vectors for its x86-64-v4, whose first processors slow down when they use them. On macOS
        # and Windows, code for Arm must not use register 18.
        tuning = {"x86_64": ["-prefer-256-bit"], "aarch64": ["+reserve-x18"]}.get(self.machine, [])
        return ",".join([*tuning, *sorted(f"+{name}" for name in self.features)])

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
        return ((32768, 3), (8192, 2)) if self.variant.zen else ((16384, 1),)


def target_of(isa: Isa, here: Host) -> Target:
    """Return the target of a set on a host: with the first variant of the set that the host can run."""
    variant = next(one for one in isa.variants if one.options <= here.features and one.zen <= here.zen)
    return Target(isa, here.system, here.machine, variant)


def possible() -> tuple[Isa, ...]:
    """Return the instruction sets that the host can run, best first."""
    return tuple(isa for isa in KNOWN if isa.runs_with(host().features))


def emulated() -> tuple[Isa, ...]:
    """Return the instruction sets that the host can only emulate, with the vectors of its best set."""
    best = possible()[0]
    tiles = replace(best, name=AMX.name, description=f"tiles, emulated with {best.name}", tiles=True, vectors=best.name)
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
    raise InvalidRequest(f"PELLUCID_ISA={name}: this machine has {names}; unset it to use {available[0].name}")


@functools.cache
def _target(isa: Isa) -> Target:
    return target_of(isa, host())


def target() -> Target:
    """Return the compile target of this process: the host, with the set that ``choose`` returns.

    Raises:
        InvalidRequest: as for ``choose``.
    """
    return _target(choose())
