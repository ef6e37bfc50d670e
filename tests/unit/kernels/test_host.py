"""The description of the processor, from what cpuid and the system report."""

from __future__ import annotations

import platform
import struct
import sys
from pathlib import Path

import pytest

from pellucid.kernels.core import host as module
from pellucid.kernels.core.host import Host, describe, host
from pellucid.util import macos

EVERYTHING = 0xFFFFFFFF
VECTORS, WIDE, TILES = 0x6, 0xE6, 0x600E6  # what the system saves, as bits of XCR0


class FakeProcessor:
    """Registers of some leaves of cpuid. Other leaves have all bits set."""

    def __init__(self, vendor: bytes, family: int, saved: int, features: int = EVERYTHING) -> None:
        first, second, third = struct.unpack("<3I", vendor)
        extended, base = max(0, family - 15), min(family, 15)
        brand = struct.unpack("<12I", b"A processor  of ours\0".ljust(48, b"\0"))
        self._leaves = {
            (0, 0): (EVERYTHING, first, third, second),
            (1, 0): (extended << 20 | base << 8, 0, features, 0),
            **{(0x80000002 + i, 0): brand[4 * i : 4 * i + 4] for i in range(3)},
        }
        self._saved = saved

    def leaf(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        return self._leaves.get((leaf, subleaf), (EVERYTHING,) * 4)

    def saved(self) -> int:
        return self._saved


@pytest.mark.parametrize(
    ("vendor", "family", "zen"),
    [
        (b"AuthenticAMD", 0x19, True),
        (b"AuthenticAMD", 0x1A, True),
        (b"HygonGenuine", 0x18, True),
        (b"AuthenticAMD", 0x15, False),
        (b"GenuineIntel", 0x19, False),
    ],
)
def test_zen_is_known_by_its_vendor_and_family(vendor: bytes, family: int, zen: bool) -> None:
    here = describe(FakeProcessor(vendor, family, WIDE), "linux")
    assert (here.zen, here.name, here.machine) == (zen, "A processor of ours", "x86_64")


@pytest.mark.parametrize(
    ("saved", "has", "lacks"),
    [
        (0, {"sse4.2", "popcnt", "bmi2"}, {"avx", "avx2", "fma", "f16c", "avxvnni", "avx512f", "amx-tile"}),
        (VECTORS, {"avx2", "fma", "f16c", "avxvnni"}, {"avx512f", "avx512vnni", "amx-tile"}),
        (WIDE, {"avx512f", "avx512vnni", "avx512bf16"}, {"amx-tile", "amx-int8"}),
        (TILES, {"amx-tile", "amx-int8"}, set()),
    ],
)
def test_registers_that_the_system_does_not_save_are_not_used(
    saved: int, has: set[str], lacks: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "function", lambda *_: lambda *_: 0)
    features = describe(FakeProcessor(b"GenuineIntel", 6, saved), "linux").features
    assert has <= features
    assert not lacks & features


def test_tiles_need_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "function", lambda *_: lambda *_: -1)
    features = describe(FakeProcessor(b"GenuineIntel", 6, TILES), "linux").features
    assert "avx512vnni" in features
    assert not [name for name in features if name.startswith("amx")]


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="Linux describes its processors")
def test_what_the_processor_says_is_what_linux_says() -> None:
    names = {"sse4.1": "sse4_1", "sse4.2": "sse4_2", "bmi": "bmi1", "lzcnt": "abm", "avx512bf16": "avx512_bf16"}
    names |= {"avx512vnni": "avx512_vnni", "avxvnni": "avx_vnni", "avx512fp16": "avx512_fp16"}
    names |= {"amx-tile": "amx_tile", "amx-int8": "amx_int8", "amx-bf16": "amx_bf16"}
    text = Path("/proc/cpuinfo").read_text()
    flags = set(next(line for line in text.splitlines() if line.startswith("flags")).split())
    for feature in describe(FakeProcessor(b"GenuineIntel", 6, TILES), "another").features:
        if not feature.startswith("amx"):
            assert (feature in host().features) == (names.get(feature, feature) in flags), feature
    assert (f": {host().name}" in text) or not host().name
    assert host().zen == ("AuthenticAMD" in text and int(text.split("cpu family\t: ")[1].split()[0]) >= 0x17)


def arm(system: str, monkeypatch: pytest.MonkeyPatch) -> frozenset[str]:
    """The features of a processor of Arm on a system."""
    monkeypatch.setattr(sys, "platform", {"windows": "win32"}.get(system, system))
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    here: Host = host.__wrapped__()
    assert (here.system, here.machine) == (system, "aarch64")
    return here.features


@pytest.mark.parametrize(
    ("system", "words", "features"),
    [
        ("linux", {16: 1 << 1, 26: 0}, {"neon"}),  # Cortex-A72
        ("linux", {16: 1 << 1 | 1 << 10 | 1 << 20}, {"neon", "fullfp16", "dotprod"}),  # Neoverse N1
        ("linux", {16: 1 << 1 | 1 << 20, 26: 1 << 13 | 1 << 14}, {"neon", "dotprod", "i8mm", "bf16"}),
        ("windows", {19: 1, 43: 1}, {"neon", "dotprod"}),
        ("freebsd", {16: 1 << 1}, set()),
    ],
)
def test_arm_processors_are_described_by_the_system(
    system: str, words: dict[int, int], features: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "function", lambda name, *types: lambda word: words.get(word, 0))
    assert arm(system, monkeypatch) == features


def test_macos_names_the_features_of_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    present = {"hw.optional.neon", "hw.optional.arm.FEAT_DotProd"}
    monkeypatch.setattr(macos, "sysctl_number", lambda name: int(name in present))
    monkeypatch.setattr(macos, "sysctl_text", lambda name: "Apple M1")
    assert arm("darwin", monkeypatch) == {"neon", "dotprod"}
