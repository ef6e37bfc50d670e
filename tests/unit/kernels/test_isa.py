"""Kernels are compiled for the chosen instruction set: with its instructions and none of a better set."""

from __future__ import annotations

import re

import pytest
from support.processes import environment, python, run

from pellucid.errors import InvalidRequest
from pellucid.kernels.core import isa
from pellucid.kernels.core.host import Host

PRODUCT = """
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.library import assembly
from pellucid.weights.quant.format import formats

print(assembly(KernelKey("matmul_int8", packed=formats()["{}"].packed, activation_bits=8)))
"""
PRODUCTS = PRODUCT.format("Q4_0") + PRODUCT.format("Q8_0")
OTHER_MACHINE = """
import sys
from pellucid.kernels.core import isa

name, system, machine, *options = sys.argv[1:]
known = next(known for known in isa.KNOWN if known.name == name)
target = isa.Target(known, system, machine, isa.Variant(frozenset(options)))
isa.target, isa.choose = lambda: target, lambda: known
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.library import assembly
"""
ATTENTION = """
print(assembly(KernelKey("attention", head_dim=64, value_dim=64, kv_dtype="f16", activation_bits=16)))
"""
ROOF = """
from pellucid.kernels.ops import roof
print(roof.multiply_key().name, assembly(roof.multiply_key()))
"""
LEVEL_3 = "avx2 fma f16c bmi bmi2 lzcnt movbe"
LEVEL_4 = f"{LEVEL_3} avx512f avx512bw avx512cd avx512dq avx512vl avx512vnni"
HAS = {
    "avx512vnni": ("vpdpbusd", "zmm"),
    "avxvnni": ("vpdpbusd", "ymm"),
    "avx2": ("vpmaddubsw", "vpmaddwd", "ymm"),
    "neon": ("sdot",),
    "portable": (),
}
LACKS = {"avxvnni": ("zmm", "%k1"), "avx2": ("zmm", "%k1", "vpdpbusd")}


@pytest.fixture(scope="module")
def assembly() -> dict[str, str]:
    """Assembly of some kernels for each set that this machine can run."""
    names = [known.name for known in isa.possible()]
    return dict(zip(names, run([(python(PRODUCTS), environment(PELLUCID_ISA=name)) for name in names])))


@pytest.mark.long
@pytest.mark.parametrize("name", [known.name for known in isa.KNOWN])
def test_compiled_for_what_was_chosen(name: str, assembly: dict[str, str]) -> None:
    if name not in assembly:
        pytest.skip(f"this machine does not have {name}")
    text = assembly[name]
    assert all(word in text for word in HAS[name])
    assert not [word for word in LACKS.get(name, ()) if word in text]


@pytest.mark.long
@pytest.mark.parametrize("name", ["avxvnni", "avx2"])
def test_vectors_wait_on_a_stack_that_is_aligned_for_them(name: str, assembly: dict[str, str]) -> None:
    if name not in assembly:
        pytest.skip(f"this machine does not have {name}")
    loops = [text for text in assembly[name].split("\t.size\t") if "vpmaddubsw" in text or "vpdpbusd" in text]
    assert loops
    assert any(re.search(r"vmovap[sd]\s+%ymm\d+, -?\d*\(%r[sb]p\)", text) for text in loops)
    assert not any(re.search(r"vmovup[sd]\s+%ymm\d+, -?\d*\(%r[sb]p\)", text) for text in loops)


@pytest.mark.long
@pytest.mark.parametrize(
    ("kernel", "options", "word"),
    [(PRODUCT.format("Q8_0"), (), "sdot"), (PRODUCT.format("Q8_0"), ("i8mm",), "usdot"), (ATTENTION, (), "fmla")],
    ids=["dotprod", "i8mm", "attention"],
)
def test_arm_machines_get_its_products(kernel: str, options: tuple[str, ...], word: str) -> None:
    """Only compiles for Arm, as this machine cannot run the code."""
    from llvmlite import binding

    binding.initialize_all_targets()
    try:
        binding.Target.from_triple("aarch64-unknown-linux-gnu")
    except RuntimeError:
        pytest.skip("this LLVM compiles for no Arm")
    (text,) = run([(python(OTHER_MACHINE + kernel, "neon", "linux", "aarch64", *options), environment())])
    assert f"\t{word}\t" in text
    assert "fmla" in text


@pytest.mark.long
@pytest.mark.parametrize("name", ["amx", "avx512vnni"])
def test_tile_instructions_are_for_the_set_that_has_them(name: str) -> None:
    """Only compiles, as this machine may not be able to run the code."""
    (text,) = run([(python(OTHER_MACHINE + PRODUCT.format("Q4_0"), name, "linux", "x86_64"), environment())])
    words = [f"\t{word}" in text for word in ("ldtilecfg", "tileloadd", "tdpbssd", "tilestored", "tilerelease")]
    assert words == 5 * [name == "amx"]
    assert "vpdpbusd" in text, "for few tokens"


@pytest.mark.long
@pytest.mark.parametrize("name", ["amx", "avx512vnni"])
def test_the_roof_is_that_of_the_units_that_the_set_uses(name: str) -> None:
    (text,) = run([(python(OTHER_MACHINE + ROOF, name, "linux", "x86_64"), environment())])
    assert text.split()[0] == ("roof.multiply_tiles" if name == "amx" else "roof.multiply")
    assert ("\ttdpbssd" in text) == (name == "amx")


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "system", "machine", "functions"),
    [
        ("avx2", "linux", "x86_64", {"syscall", "sched_yield", "sched_getcpu"}),
        ("neon", "linux", "aarch64", {"syscall", "sched_yield"}),
        ("neon", "darwin", "aarch64", {"__ulock_wait", "__ulock_wake"}),
        ("avx2", "windows", "x86_64", {"WaitOnAddress", "WakeByAddressAll", "SwitchToThread"}),
    ],
    ids=["linux", "linux-arm", "macos", "windows"],
)
def test_waiting_threads_sleep_by_the_function_of_their_system(
    name: str, system: str, machine: str, functions: set[str]
) -> None:
    """Only compiles, for any system."""
    program = OTHER_MACHINE + 'print(assembly(KernelKey("loop.work")))'
    (text,) = run([(python(program, name, system, machine), environment())])
    known = {"syscall", "__ulock_wait", "__ulock_wake", "WaitOnAddress", "WakeByAddressAll", "SwitchToThread"}
    assert {word for word in known | functions if re.search(rf"\b{word}\b", text)} & known == functions & known
    assert all(word in text for word in functions)


def test_any_machine_can_emulate_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELLUCID_ISA", "amx")
    chosen, best = isa.choose(), isa.possible()[0]
    assert (chosen.name, chosen.tiles, chosen.vector_set) == ("amx", True, best.vector_set)


def test_the_first_of_those_possible_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PELLUCID_ISA", raising=False)
    assert isa.choose() == isa.possible()[0]
    monkeypatch.setenv("PELLUCID_ISA", "portable")
    assert isa.choose().name == "portable"
    monkeypatch.setenv("PELLUCID_ISA", "nonsense")
    with pytest.raises(InvalidRequest, match=r"PELLUCID_ISA=nonsense: this machine has .*portable; unset it"):
        isa.choose()


@pytest.mark.parametrize(
    ("features", "names"),
    [
        (f"{LEVEL_4} amx-tile amx-int8", "amx avx512vnni avxvnni avx2 portable"),
        (LEVEL_4, "avx512vnni avxvnni avx2 portable"),
        (f"{LEVEL_3} avxvnni", "avxvnni avx2 portable"),
        (LEVEL_3, "avx2 portable"),
        ("avx2 fma f16c", "portable"),  # no processor; an emulator may say so
        ("avx", "portable"),
        ("neon dotprod", "neon portable"),
        ("neon", "portable"),
    ],
)
def test_what_a_machine_can_run(features: str, names: str) -> None:
    here = frozenset(features.split())
    assert [known.name for known in isa.KNOWN if known.runs_with(here)] == names.split()


def target(features: str, *, zen: bool = False, machine: str = "x86_64") -> isa.Target:
    """The target of the best set of a processor."""
    here = Host("linux", machine, frozenset(features.split()), zen, "")
    return isa.target_of(next(known for known in isa.KNOWN if known.runs_with(here.features)), here)


@pytest.mark.parametrize(
    ("features", "zen", "name"),
    [
        (f"{LEVEL_4} amx-tile amx-int8 avx512bf16 avxvnni", False, "amx-avx512bf16"),
        (f"{LEVEL_4} avx512bf16", True, "avx512vnni-avx512bf16-zen"),  # Zen 4
        (f"{LEVEL_4} avx512bf16", False, "avx512vnni-avx512bf16"),
        (LEVEL_4, False, "avx512vnni"),  # Cascade Lake
        (LEVEL_4, True, "avx512vnni"),  # a virtual machine that hides a feature
        (f"{LEVEL_3} avxvnni", False, "avxvnni-avxvnni"),  # Alder Lake
        (LEVEL_3, True, "avx2-zen"),
        (LEVEL_3, False, "avx2"),
        ("sse4.2", True, "portable"),
    ],
)
def test_processors_of_a_kind_have_the_same_target(features: str, zen: bool, name: str) -> None:
    assert target(features, zen=zen).name == f"linux-x86_64-{name}"


def test_a_target_has_the_features_that_the_compiler_may_use() -> None:
    wide, narrow = target(f"{LEVEL_4} avx512bf16"), target(f"{LEVEL_3} avx512bf16")
    assert [wide.has(one) for one in ("avx512vnni", "avx512bf16", "avx2", "amx-int8")] == [True, True, True, False]
    assert [narrow.has(one) for one in ("avx512vnni", "avx512bf16", "avx2")] == [False, False, True]
    assert not target("sse4.2 popcnt").features
    assert target("neon dotprod i8mm", machine="aarch64").features == {"neon", "dotprod", "i8mm"}


def test_vectors_of_512_bits_are_not_split() -> None:
    assert "-prefer-256-bit" in target(LEVEL_4).feature_text.split(",")
    assert target("neon dotprod", machine="aarch64").feature_text == "+reserve-x18,+dotprod,+neon"


def test_a_stream_is_prefetched_early_where_few_lines_are_tracked() -> None:
    for features in (f"{LEVEL_4} avx512bf16", LEVEL_3):
        for zen, levels in ((True, [3, 2]), (False, [1])):
            stream = target(features, zen=zen).stream
            assert [level for _, level in stream] == levels
            assert sorted(stream, reverse=True) == list(stream), "the farther, the earlier"
