"""Every instruction set that this machine can run or emulate passes the kernels' own tests, not only the best set.

The tests run unchanged, with few examples, in one process per set. The sets differ in integer products and in table
lookups. A few formats cover these: 4 and 8 bits, several planes, scales of 16 values, minima, zero points.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.processes import environment, run

from pellucid.kernels.core import isa

KERNELS = Path(__file__).parents[1] / "unit" / "kernels"
TESTS = [
    str(KERNELS / f"test_{name}.py")
    for name in (
        "matmul_int8",
        "matmul_floats_bf16",
        "grouped_experts",
        "grouped_heads",
        "quantize",
        "norm",
        "roof",
        "simd",
    )
]
FORMATS = "Q2_K or Q6_K or IQ4_NL or Q8_0 or Q4_1"
# Products by expert and by head compile the same sums for seconds each, so one format is enough for them.
WHICH = f"(matmul_int8 and ({FORMATS})) or (grouped and Q6_K) or bf16 or quantize or norm or roof or simd"


@pytest.mark.long
def test_every_set_passes_the_kernels_tests() -> None:
    chosen, command = (
        isa.choose(),
        [sys.executable, "-m", "pytest", "--hypothesis-profile=quick", *TESTS, "-k", WHICH],
    )
    others = [one.name for one in (*isa.possible(), *isa.emulated()) if one != chosen]
    said = run([(command, environment(PELLUCID_ISA=name)) for name in others])
    assert all(" passed" in text and " skipped" not in text for text in said)
