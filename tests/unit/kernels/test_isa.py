"""Kernels are compiled for the chosen instruction set: with its instructions and none of a better set."""

from __future__ import annotations

import re

import pytest
from support.processes import environment, python, run

from pellucid.errors import InvalidRequest
from pellucid.kernels.core import isa

PRODUCT = """
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.library import assembly
from pellucid.weights.quant.registry import formats

print(assembly(KernelKey("matmul_int8", packed=formats()["{}"].packed, activation_bits=8)))
"""
PRODUCTS = PRODUCT.format("Q4_0") + PRODUCT.format("Q8_0")
OTHER_MACHINE = """
import sys
from pellucid.kernels.core import isa

name, triple, cpu, features = sys.argv[1:]
known = next(known for known in isa.KNOWN if known.name == name)
machine = isa.Target(known, triple, cpu, frozenset(features.split(",")))
isa.target = lambda: machine
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
ARM, XEON = ("neon", "aarch64-unknown-linux-gnu", "generic"), ("x86_64-unknown-linux-gnu", "sapphirerapids")
WIDE = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,amx-tile,amx-int8"
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
    ("kernel", "features", "word"),
    [
        (PRODUCT.format("Q8_0"), "neon,dotprod,fullfp16", "sdot"),
        (PRODUCT.format("Q8_0"), "neon,dotprod,fullfp16,i8mm", "usdot"),
        (ATTENTION, "neon,dotprod,fullfp16", "fmla"),
    ],
    ids=["dotprod", "i8mm", "attention"],
)
def test_arm_machines_get_its_products(kernel: str, features: str, word: str) -> None:
    """Only compiles for Arm, as this machine cannot run the code."""
    from llvmlite import binding

    binding.initialize_all_targets()
    try:
        binding.Target.from_triple("aarch64-unknown-linux-gnu")
    except RuntimeError:
        pytest.skip("this LLVM compiles for no Arm")
    (text,) = run([(python(OTHER_MACHINE + kernel, *ARM, features), environment())])
    assert f"\t{word}\t" in text
    assert "fmla" in text


@pytest.mark.long
@pytest.mark.parametrize("name", ["amx", "avx512vnni"])
def test_tile_instructions_are_for_the_set_that_has_them(name: str) -> None:
    """Only compiles, as this machine may not be able to run the code."""
    (text,) = run([(python(OTHER_MACHINE + PRODUCT.format("Q4_0"), name, *XEON, WIDE), environment())])
    words = [
        f"\t{word}" in text for word in ("ldtilecfg", "tileloadd", "tdpbssd", "tilestored", "tilerelease")
    ]
    assert words == 5 * [name == "amx"]
    assert "vpdpbusd" in text, "for few tokens"


@pytest.mark.long
@pytest.mark.parametrize("name", ["amx", "avx512vnni"])
def test_the_roof_is_that_of_the_units_that_the_set_uses(name: str) -> None:
    (text,) = run([(python(OTHER_MACHINE + ROOF, name, *XEON, WIDE), environment())])
    assert text.split()[0] == ("roof.multiply_tiles" if name == "amx" else "roof.multiply")
    assert ("\ttdpbssd" in text) == (name == "amx")


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
        (WIDE.replace(",", " "), "amx avx512vnni avxvnni avx2 portable"),
        ("avx512f avx512bw avx512vl avx512vnni avx2 fma f16c", "avx512vnni avxvnni avx2 portable"),
        ("avx2 fma f16c avxvnni", "avxvnni avx2 portable"),
        ("avx2 fma f16c", "avx2 portable"),
        ("avx", "portable"),
        ("neon dotprod", "neon portable"),
        ("neon", "portable"),
    ],
)
def test_what_a_machine_can_run(features: str, names: str) -> None:
    here = frozenset(features.split())
    assert [known.name for known in isa.KNOWN if known.runs_with(here)] == names.split()


def test_a_target_has_the_features_that_the_compiler_may_use() -> None:
    known = {each.name: each for each in isa.KNOWN}
    machine = frozenset({"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512vnni"})
    targets = {
        name: isa.Target(known[name], "x86_64-unknown-linux-gnu", "znver4", machine)
        for name in ("avx512vnni", "avx2", "portable")
    }
    has = {
        name: [one for one in ("avx512vnni", "avx2", "amx-int8") if target.has(one)]
        for name, target in targets.items()
    }
    assert has == {"avx512vnni": ["avx512vnni", "avx2"], "avx2": ["avx2"], "portable": ["avx512vnni", "avx2"]}
    assert all(not target.has("nonsense") for target in targets.values())


@pytest.mark.parametrize(("cpu", "levels"), [("znver4", [3, 2]), ("sapphirerapids", [1]), ("generic", [1])])
def test_a_stream_is_prefetched_early_where_few_lines_are_tracked(cpu: str, levels: list[int]) -> None:
    stream = isa.Target(isa.KNOWN[-1], "x86_64-unknown-linux-gnu", cpu, frozenset()).stream
    assert [level for _, level in stream] == levels
    assert sorted(stream, reverse=True) == list(stream), "the farther, the earlier"


def test_features_of_better_sets_are_switched_off() -> None:
    known = {each.name: each for each in isa.KNOWN}
    machine = frozenset({"avx2", "fma", "avx512f", "avx512vnni", "avxvnni", "avx10.1-512"})
    text = isa.Target(
        known["avx2"], "x86_64-unknown-linux-gnu", "znver4", machine, frozenset({"amx-tile"})
    ).feature_text
    assert text.split(",") == [
        "-amx-tile", "-avx10.1-512", "-avx512f", "-avx512vnni", "-avxvnni", "+avx2", "+fma",
    ]  # fmt: skip
