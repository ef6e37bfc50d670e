"""What is chosen is what is compiled: each instruction set's kernels have its instructions, none of a better one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pellucid.errors import InvalidRequest
from pellucid.kernels import isa

KERNELS = """
from pellucid.kernels.library import KernelKey, assembly
from pellucid.weights.quant import formats

for name in ("Q4_0", "Q8_0"):
    print(assembly(KernelKey("matmul_int8", (formats()[name].packed, 1))))
"""
OTHER_MACHINE = """
import sys
from pellucid.kernels import isa

neon = next(known for known in isa.KNOWN if known.name == "neon")
machine = isa.Target(neon, "aarch64-unknown-linux-gnu", "generic", frozenset(sys.argv[1].split(",")))
isa.target = lambda: machine
from pellucid.kernels.library import KernelKey, assembly
print(assembly(KernelKey("attention", (64, 64, "f16", 2))))
"""
HAS = {
    "avx512vnni": ("vpdpbusd", "zmm"),
    "avxvnni": ("vpdpbusd", "ymm"),
    "avx2": ("vpmaddubsw", "vpmaddwd", "ymm"),
    "neon": ("sdot",),
    "portable": (),
}
LACKS = {"avxvnni": ("zmm", "%k1"), "avx2": ("zmm", "%k1", "vpdpbusd")}


def run(program: str, *arguments: str, **environment: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("name", [known.name for known in isa.KNOWN])
def test_compiled_for_what_was_chosen(name: str) -> None:
    if name not in [known.name for known in isa.possible()]:
        pytest.skip(f"this machine does not have {name}")
    text = run(KERNELS, PELLUCID_ISA=name)
    assert all(word in text for word in HAS[name])
    assert not [word for word in LACKS.get(name, ()) if word in text]


@pytest.mark.parametrize(
    ("features", "word"), [("neon,dotprod,fullfp16", "sdot"), ("neon,dotprod,fullfp16,i8mm", "usdot")]
)
def test_arm_machines_get_its_products(features: str, word: str) -> None:
    """Compiled for them here; whether their bits are the same only such a machine can tell."""
    from llvmlite import binding

    binding.initialize_all_targets()
    try:
        binding.Target.from_triple("aarch64-unknown-linux-gnu")
    except RuntimeError:
        pytest.skip("this LLVM compiles for no Arm")
    text = run(OTHER_MACHINE + KERNELS, features)
    assert f"\t{word}\t" in text
    assert "fmla" in text


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


def test_features_of_better_sets_are_switched_off() -> None:
    known = {each.name: each for each in isa.KNOWN}
    machine = frozenset({"avx2", "fma", "avx512f", "avx512vnni", "avxvnni", "avx10.1-512"})
    text = isa.Target(
        known["avx2"], "x86_64-unknown-linux-gnu", "znver4", machine, frozenset({"amx-tile"})
    ).feature_text
    assert text.split(",") == [
        "-amx-tile", "-avx10.1-512", "-avx512f", "-avx512vnni", "-avxvnni", "+avx2", "+fma",
    ]  # fmt: skip
