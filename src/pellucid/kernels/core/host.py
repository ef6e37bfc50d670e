"""The system and the processor that this process runs on.

x86-64 processors describe themselves (the instruction cpuid); the system says which registers it saves. For Arm, the
system reports the features. Feature names are LLVM's. Only features that an instruction set of ``isa.py`` uses, or that
``pellucid info --machine`` shows, are read.

Sources: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2A (CPUID) and volume 1, chapter 13
(XGETBV); AMD64 Architecture Programmer's Manual, volume 3, appendix E; Linux, Documentation/arch/arm64/elf_hwcaps.rst.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import struct
import sys
from pathlib import Path
from typing import NamedTuple

from pellucid.kernels.core.code_memory import function, map_code

_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
_SYSTEMS = {"linux": "linux", "darwin": "darwin", "win32": "windows"}

_EAX, _EBX, _ECX, _EDX = range(4)
# Feature: (leaf, subleaf, register, bit).
_CPUID = {
    "ssse3": (1, 0, _ECX, 9), "fma": (1, 0, _ECX, 12), "sse4.1": (1, 0, _ECX, 19), "sse4.2": (1, 0, _ECX, 20),
    "movbe": (1, 0, _ECX, 22), "popcnt": (1, 0, _ECX, 23), "avx": (1, 0, _ECX, 28), "f16c": (1, 0, _ECX, 29),
    "bmi": (7, 0, _EBX, 3), "avx2": (7, 0, _EBX, 5), "bmi2": (7, 0, _EBX, 8), "avx512f": (7, 0, _EBX, 16),
    "avx512dq": (7, 0, _EBX, 17), "avx512cd": (7, 0, _EBX, 28), "avx512bw": (7, 0, _EBX, 30),
    "avx512vl": (7, 0, _EBX, 31), "avx512vnni": (7, 0, _ECX, 11), "amx-bf16": (7, 0, _EDX, 22),
    "avx512fp16": (7, 0, _EDX, 23), "amx-tile": (7, 0, _EDX, 24), "amx-int8": (7, 0, _EDX, 25),
    "avxvnni": (7, 1, _EAX, 4), "avx512bf16": (7, 1, _EAX, 5), "lzcnt": (0x80000001, 0, _ECX, 5),
}  # fmt: skip
# The registers that the system must save (bits of XCR0) for features whose names begin so.
_SAVED = {"avx512": 0xE6, "amx": 0x60000, "avx": 0x6, "fma": 0x6, "f16c": 0x6}
_OSXSAVE = (1, 0, _ECX, 27)

# int cpuid(leaf, subleaf, registers), and int64 xgetbv(), with the calling conventions of System V and of Windows.
_CPUID_CODE = {
    "linux": bytes.fromhex("53 49 89 d0 89 f8 89 f1 0f a2 41 89 00 41 89 58 04 41 89 48 08 41 89 50 0c 5b c3"),
    "windows": bytes.fromhex("53 89 c8 89 d1 0f a2 41 89 00 41 89 58 04 41 89 48 08 41 89 50 0c 5b c3"),
}
_XGETBV_CODE = bytes.fromhex("31 c9 0f 01 d0 48 c1 e2 20 48 09 d0 c3")
_ZEN_FAMILY = 0x17  # the family number of the first Zen

_HWCAP = {"neon": (16, 1), "fullfp16": (16, 10), "dotprod": (16, 20), "i8mm": (26, 13), "bf16": (26, 14)}
"""For Linux on Arm: the feature's word in the auxiliary vector and its bit."""
_SYSCTL = {
    "neon": "hw.optional.neon", "fullfp16": "hw.optional.arm.FEAT_FP16", "dotprod": "hw.optional.arm.FEAT_DotProd",
    "i8mm": "hw.optional.arm.FEAT_I8MM", "bf16": "hw.optional.arm.FEAT_BF16",
}  # fmt: skip
_PROCESSOR_FEATURE = {"neon": 19, "dotprod": 43}  # Windows: IsProcessorFeaturePresent


class Host(NamedTuple):
    """The system ("linux", "darwin", "windows" or another name), the architecture, and the processor's features.

    ``zen`` is True for AMD's Zen and its successors. ``name`` is the vendor's name of the processor, "" if unknown.
    """

    system: str
    machine: str
    features: frozenset[str]
    zen: bool
    name: str


@functools.cache
def host() -> Host:
    """Return the host. A feature whose registers the system does not save is left out."""
    system = _SYSTEMS.get(sys.platform, sys.platform)
    machine = _MACHINES.get(platform.machine().lower(), platform.machine())
    if machine == "x86_64":
        return _x86(system)
    features = _arm_features(system) if machine == "aarch64" else frozenset[str]()
    return Host(system, machine, features, False, _arm_name(system))


class Processor:
    """Reads the description that an x86-64 processor gives of itself."""

    def __init__(self, system: str) -> None:
        cpuid = map_code(_CPUID_CODE.get(system, _CPUID_CODE["linux"]))
        self._cpuid = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)(cpuid)
        self._xgetbv = ctypes.CFUNCTYPE(ctypes.c_int64)(map_code(_XGETBV_CODE))

    def leaf(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        """Return eax, ebx, ecx and edx of a leaf; zeros if the processor does not have the leaf."""
        registers = (ctypes.c_uint32 * 4)()
        self._cpuid(leaf & 0x80000000, 0, registers)
        if leaf > registers[_EAX]:
            return 0, 0, 0, 0
        self._cpuid(leaf, subleaf, registers)
        eax, ebx, ecx, edx = registers
        return eax, ebx, ecx, edx

    def saved(self) -> int:
        """Return the registers that the system saves, as bits of XCR0."""
        leaf, subleaf, register, bit = _OSXSAVE
        return int(self._xgetbv()) if self.leaf(leaf, subleaf)[register] >> bit & 1 else 0


def _x86(system: str) -> Host:
    return describe(Processor(system), system)


def describe(processor: Processor, system: str) -> Host:
    """Return the host with an x86-64 processor."""
    saved = processor.saved()
    features = frozenset(
        feature
        for feature, (leaf, subleaf, register, bit) in _CPUID.items()
        if processor.leaf(leaf, subleaf)[register] >> bit & 1 and _is_saved(feature, saved)
    )
    tiles = frozenset(feature for feature in features if feature.startswith("amx"))
    if tiles and not _may_use_tiles(system):
        features -= tiles
    _, *vendor = processor.leaf(0)
    maker = struct.pack("<3I", vendor[0], vendor[2], vendor[1])
    version = processor.leaf(1)[_EAX]
    family = (version >> 8 & 15) + (version >> 20 & 255)
    brand = b"".join(struct.pack("<4I", *processor.leaf(0x80000002 + i)) for i in range(3))
    name = " ".join(brand.partition(b"\0")[0].decode("ascii", "replace").split())
    zen = maker in (b"AuthenticAMD", b"HygonGenuine") and family >= _ZEN_FAMILY
    return Host(system, "x86_64", features, zen, name)


def _is_saved(feature: str, saved: int) -> bool:
    needed = next((bits for start, bits in _SAVED.items() if feature.startswith(start)), 0)
    return saved & needed == needed


def _may_use_tiles(system: str) -> bool:
    """Ask Linux for permission to use tile registers, for all threads. Returns True if Linux grants it."""
    if system != "linux":
        return False
    arch_prctl, request, tile_data = 158, 0x1023, 18  # Linux: Documentation/arch/x86/xstate.rst
    syscall = function("syscall", ctypes.c_long, *[ctypes.c_long] * 3)
    return bool(syscall(arch_prctl, request, tile_data) == 0)


def _arm_features(system: str) -> frozenset[str]:
    match system:
        case "linux":
            value = function("getauxval", ctypes.c_ulong, ctypes.c_ulong)
            return frozenset(name for name, (word, bit) in _HWCAP.items() if value(word) >> bit & 1)
        case "darwin":
            from pellucid.util import macos

            return frozenset(feature for feature, name in _SYSCTL.items() if macos.sysctl_number(name))
        case "windows":
            present = function("IsProcessorFeaturePresent", ctypes.c_int, ctypes.c_uint32)
            return frozenset(name for name, number in _PROCESSOR_FEATURE.items() if present(number))
    return frozenset()


def _arm_name(system: str) -> str:
    if system == "linux":
        try:
            lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        except OSError:
            return ""
        names = [line.partition(":")[2].strip() for line in lines if line.lower().startswith("model name")]
        return names[0] if names else ""
    if system == "darwin":
        from pellucid.util import macos

        return macos.sysctl_text("machdep.cpu.brand_string")
    return platform.processor()
