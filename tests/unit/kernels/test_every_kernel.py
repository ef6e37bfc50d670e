"""Every kernel in the folder has a test module with its file's name, or a longer name, that mentions the kernel."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pellucid.errors import KernelError
from pellucid.kernels.core import definitions as definitions_module
from pellucid.kernels.core.definitions import PACKAGE, definition, definitions
from pellucid.util.registry import modules


@pytest.mark.parametrize("name", sorted(definitions()))
def test_kernel_is_tested_in_the_module_of_its_name(name: str) -> None:
    """A module with several kernels may have several test modules, whose names begin with its name."""
    folder, module = definitions()[name].module.split(".")[-2:]
    names = (f"test_{one}{more}.py" for one in (module, f"{folder}_{module}") for more in ("", "_*"))
    tests = [file for pattern in names for file in sorted(Path(__file__).parent.glob(pattern))]
    assert tests, f"kernels/{folder}/{module}.py has no tests/unit/kernels/test_{folder}_{module}.py"
    assert any(f'"{name}"' in file.read_text() for file in tests), f"no {tests[0].name} names the kernel {name}"


def test_the_sources_say_what_the_modules_declare() -> None:
    for folder in (one.name for one in definitions_module.ROOT.iterdir() if one.is_dir()):
        if folder not in (*definitions_module._NO_KERNELS, "__pycache__"):
            modules(f"{PACKAGE}.{folder}")
    declared = definitions_module._definitions
    assert {name: one.module for name, one in declared.items() if one.module.startswith(PACKAGE)} == (
        definitions_module._modules()
    )


def test_an_unknown_kernel() -> None:
    with pytest.raises(KernelError, match=r'no kernel is called nonsense: no line .* @kernel\("nonsense"'):
        definition("nonsense")


def test_two_modules_that_declare_one_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / "ops").mkdir(exist_ok=True)
        (tmp_path / "ops" / f"{name}.py").write_text('@kernel("add", AddRecord)\ndef build(simd): ...\n')
    monkeypatch.setattr(definitions_module, "ROOT", tmp_path)
    first, second = (f"{PACKAGE}.ops.{name}" for name in ("one", "two"))
    with pytest.raises(KernelError, match=re.escape(f"two kernels are called add: in {first} and {second}")):
        definitions_module._modules.__wrapped__()
