"""Wheels contain the kernels of all published models, for all targets of their systems."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from support.tiny import ENCODERS, opened

from pellucid import pipeline
from pellucid.kernels.core import isa
from pellucid.kernels.core.definitions import KernelKey, definitions
from pellucid.kernels.core.host import Host
from pellucid.measure.paper import paper_model, paper_shapes
from pellucid.model.family import known_families
from pellucid.model.read import convert_encoder
from pellucid.model.shapes import expected_shapes
from pellucid.plan.bind import layouts
from pellucid.testing import planned_model
from pellucid.weights.pack import packer
from pellucid.weights.quant.format import formats

PACKAGING = Path(__file__).parents[2] / "packaging"


@pytest.fixture(scope="module")
def catalogue() -> Iterator[ModuleType]:
    sys.path.insert(0, str(PACKAGING))
    yield importlib.import_module("catalogue")
    sys.path.remove(str(PACKAGING))


@pytest.fixture(scope="module")
def keys(catalogue: ModuleType) -> set[KernelKey]:
    return set(catalogue.kernels())


def without_widths(key: KernelKey) -> KernelKey:
    widths = {name: 0 for name, _ in key.parameters if name in ("head_dim", "value_dim")}
    return key.replace(**widths)


def test_every_kernel_is_in_the_catalogue(keys: set[KernelKey]) -> None:
    assert {key.name for key in keys} == set(definitions())


def test_weights_of_every_format_can_be_packed(keys: set[KernelKey]) -> None:
    assert {packer(form) for form in formats().values()} <= keys


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "kv_dtype"), [(8, None), (16, None), (24, None), (8, "q8_0")])
def test_published_models_need_no_compiler(
    catalogue: ModuleType, keys: set[KernelKey], bits: int, kv_dtype: str | None
) -> None:
    for name in paper_shapes():
        plan = paper_model(name, bits, kv_dtype).plan
        absent = set(plan.kernels()) - keys
        if kv_dtype:  # wide heads have only their usual types
            absent = {key for key in absent if key.name != "attention" or key["head_dim"] < catalogue.WIDE}
        assert not absent, name


@pytest.mark.slow
def test_families_need_no_compiler_but_for_the_widths_of_heads(keys: set[KernelKey]) -> None:
    known = {without_widths(key) for key in keys}
    for family in known_families():
        spec = planned_model(family).spec
        shapes = {slot: shape for slot, shape in expected_shapes(spec).items() if len(shape) > 1}
        for name in ("F16", "F32", "BF16"):
            plan = pipeline.build_plan(spec, {slot: formats()[name].packed for slot in shapes})
            used = [*plan.kernels(), *(plan.encoder.kernels() if plan.encoder else ())]
            assert not {without_widths(key) for key in used} - known, family


@pytest.mark.slow
def test_encoders_need_no_compiler_but_for_the_widths_of_heads(keys: set[KernelKey]) -> None:
    """With the weights that they have after loading."""
    known = {without_widths(key) for key in keys}
    for name, path in ENCODERS.items():
        if name != "lfm2-two-sided-odd":  # no published model has its convolutions
            with opened(path) as (checkpoint, read):
                model = convert_encoder(checkpoint, read)
                plan = pipeline.build_plan(model.spec, layouts(checkpoint, model))
                assert not {without_widths(key) for key in plan.kernels()} - known, name


LEVEL_3 = {"avx2", "fma", "f16c", "bmi", "bmi2", "lzcnt", "movbe"}
LEVEL_4 = LEVEL_3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vnni"}


@pytest.mark.parametrize("system", ["linux", "darwin", "windows"])
@pytest.mark.parametrize(
    ("machine", "features"),
    [
        ("x86_64", set()),
        ("x86_64", LEVEL_3),
        ("x86_64", LEVEL_3 | {"avxvnni"}),
        ("x86_64", LEVEL_4),
        ("x86_64", LEVEL_4 | {"avx512bf16", "avxvnni"}),
        ("x86_64", LEVEL_4 | {"avx512bf16", "amx-tile", "amx-int8"}),
        ("aarch64", set()),
        ("aarch64", {"neon", "dotprod"}),
        ("aarch64", {"neon", "dotprod", "i8mm"}),
    ],
    ids=lambda value: "+".join(sorted(value)[:3]) if isinstance(value, set) else value,
)
@pytest.mark.parametrize("zen", [False, True])
def test_every_processor_has_kernels(
    catalogue: ModuleType, system: str, machine: str, features: set[str], zen: bool
) -> None:
    if f"{system}-{machine}" == "windows-aarch64":
        pytest.skip("no wheel")
    here = Host(system, machine, frozenset(features), zen, "")
    best = next(known for known in isa.KNOWN if known.runs_with(here.features))
    assert isa.target_of(best, here) in catalogue.targets(f"{system}-{machine}")


def test_every_system_has_a_platform(catalogue: ModuleType) -> None:
    assert set(catalogue.SYSTEMS) == set(importlib.import_module("hooks").PLATFORMS)


def test_kernels_are_built_without_the_tools_of_a_developer() -> None:
    """An installation without extras has no Hatchling. ``make test-wheel`` builds a wheel there."""
    code = "import sys; sys.modules['hatchling'] = None; sys.argv = ['x', '-h']; import build_kernels as b; b.main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGING, capture_output=True, text=True)
    assert "--targets" in done.stdout, done.stderr


def test_targets_have_names_of_their_own(catalogue: ModuleType) -> None:
    names = [target.name for system in catalogue.SYSTEMS for target in catalogue.targets(system)]
    assert len(set(names)) == len(names)
    for system in catalogue.SYSTEMS:
        assert all(target.name.startswith(f"{system}-") for target in catalogue.targets(system))
