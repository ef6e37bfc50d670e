"""Which instruction set the kernels are compiled for, and what the compiler is told of the CPU.

``PELLUCID_ISA`` overrides the choice; an unknown or impossible name is an error, never ignored. What is chosen is what
is compiled: instructions of better sets are taken from the compiler, which would use them on its own.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

from pellucid.errors import InvalidRequest


@dataclass(frozen=True)
class Isa:
    """An instruction set: its name, what it is, the CPU features it needs, and those that it does without.

    The features are LLVM's names. Of ``needs`` any one group is enough. Every feature whose name begins with one of
    ``without`` is switched off.
    """

    name: str
    description: str
    needs: tuple[frozenset[str], ...]
    without: tuple[str, ...] = ()
    sums: int = 16
    """Sums of 16 lanes that a matrix product may have at a time: what the registers hold, beside its operands."""
    lanes: int = 16
    """32-bit lanes that a register has."""

    terms: int = 1
    """Products of bytes, the unsigned ones of 4 bits, that it adds up in 16 bits before it widens their sum."""

    def runs_with(self, features: frozenset[str]) -> bool:
        """Whether a CPU with these features has it."""
        return any(group <= features for group in self.needs)

    def compiled_with(self, features: frozenset[str]) -> frozenset[str]:
        """Those of a CPU's features that the compiler may use."""
        return frozenset(name for name in features if not name.startswith(self.without))


_AVX2 = frozenset({"avx2", "fma", "f16c"})
_WIDE = ("avx512", "avx10")

# Best first. A CPU with AVX-512 has the 256-bit vpdpbusd in another encoding, so it can run, and test, ``avxvnni``.
# ``portable`` leaves the compiler whatever the host has: it names no instruction, so it is for the CPUs that have none
# of the other sets, and these are best served by what they do have.
KNOWN = (
    Isa(
        "avx512vnni",
        "512-bit vpdpbusd",
        (frozenset({"avx512f", "avx512bw", "avx512vl", "avx512vnni"}),),
    ),
    Isa(
        "avxvnni",
        "256-bit vpdpbusd",
        (_AVX2 | {"avxvnni"}, _AVX2 | {"avx512vnni", "avx512vl"}),
        without=_WIDE,
        sums=4,
        lanes=8,
    ),
    Isa("avx2", "256-bit vpmaddubsw", (_AVX2,), without=(*_WIDE, "avxvnni"), sums=4, lanes=8, terms=8),
    Isa("neon", "128-bit sdot, and usdot where it is", (frozenset({"neon", "dotprod"}),), sums=4, lanes=4),
    Isa("portable", "plain LLVM vectors, whatever the host makes of them", (frozenset(),), sums=4),
)


@dataclass(frozen=True)
class Target:
    """What kernels are compiled for: a set, and the machine as LLVM calls it."""

    isa: Isa
    triple: str
    cpu: str
    machine: frozenset[str]
    """All features of the machine, those that the set does without included."""
    lacks: frozenset[str] = frozenset()
    """Features that other machines have and this one does not."""

    @property
    def features(self) -> frozenset[str]:
        """The features that the compiler may use."""
        return self.isa.compiled_with(self.machine)

    @property
    def feature_text(self) -> str:
        """The same as LLVM wants it: a CPU's name stands for features too, so what is off is said."""
        off = (self.machine | self.lacks) - self.features
        return ",".join([*sorted(f"-{name}" for name in off), *sorted(f"+{name}" for name in self.features)])

    def has(self, feature: str) -> bool:
        """Whether the compiler may use a feature."""
        return feature in self.features

    @property
    def stream(self) -> tuple[tuple[int, int], ...]:
        """How a stream from memory is asked for ahead of its use: so many bytes before, into which cache (1: nearest).

        Zen cores wait for few lines at a time on behalf of the nearer caches, so that a line is asked for twice: from
        afar into the third, and then, when it is there, into the second. One thread reads 26 GB/s of Q4_1 on Zen 4
        that way, 21 with one request for the second cache, 16 with one for the first, which is best on Emerald Rapids.
        """
        return ((32768, 3), (8192, 2)) if self.cpu.startswith("znver") else ((16384, 1),)


@functools.cache
def _host() -> tuple[str, str, frozenset[str], frozenset[str]]:
    """The host's triple, its CPU, the features that it has, and those that it lacks."""
    from llvmlite import binding

    known = binding.get_host_cpu_features()
    has = frozenset(name for name, present in known.items() if present)
    return binding.get_process_triple(), binding.get_host_cpu_name(), has, frozenset(known) - has


def host_features() -> frozenset[str]:
    """The names of the host CPU's features, as LLVM calls them."""
    return _host()[2]


def possible() -> tuple[Isa, ...]:
    """The sets that the host can run, best first."""
    return tuple(isa for isa in KNOWN if isa.runs_with(host_features()))


def choose() -> Isa:
    """The instruction set to use: ``PELLUCID_ISA`` if set, else the best that the host has.

    Raises:
        InvalidRequest: ``PELLUCID_ISA`` names an unknown set, or one that this CPU does not have.
    """
    wanted, here = os.environ.get("PELLUCID_ISA", ""), possible()
    if not wanted:
        return here[0]
    for isa in here:
        if isa.name == wanted:
            return isa
    names = ", ".join(isa.name for isa in here)
    raise InvalidRequest(f"PELLUCID_ISA={wanted}: this machine has {names}; unset it to use {here[0].name}")


def target() -> Target:
    """What this process compiles for: the host, with the set that ``choose`` gives.

    Raises:
        InvalidRequest: as for ``choose``.
    """
    triple, cpu, features, lacks = _host()
    return Target(choose(), triple, cpu, features, lacks)
