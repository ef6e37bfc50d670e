"""Every kernel in the folder has a test module with its file's name, or a longer name, that mentions the kernel."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from support.fresh import fresh

from pellucid.errors import KernelError
from pellucid.kernels.core import definitions as definitions_module
from pellucid.kernels.core.definitions import PACKAGE, definition, definitions


@pytest.mark.parametrize("name", sorted(definitions()))
def test_kernel_is_tested_in_the_module_of_its_name(name: str) -> None:
    """A module with several kernels may have several test modules, whose names begin with its name."""
    folder, module = definitions()[name].module.split(".")[-2:]
    names = (f"test_{one}{more}.py" for one in (module, f"{folder}_{module}") for more in ("", "_*"))
    tests = [file for pattern in names for file in sorted(Path(__file__).parent.glob(pattern))]
    assert tests, f"kernels/{folder}/{module}.py has no tests/unit/kernels/test_{folder}_{module}.py"
    assert any(f'"{name}"' in file.read_text() for file in tests), f"no {tests[0].name} names the kernel {name}"


def test_the_sources_say_what_the_modules_declare() -> None:
    declared = dict[str, str]()
    for file in definitions_module.ROOT.rglob("*.py"):
        module = ".".join((PACKAGE, *file.relative_to(definitions_module.ROOT).with_suffix("").parts))
        functions = (node for node in ast.parse(file.read_text("utf-8")).body if isinstance(node, ast.FunctionDef))
        for call in (call for function in functions for call in function.decorator_list if isinstance(call, ast.Call)):
            if isinstance(call.func, ast.Name) and call.func.id == "kernel":
                declared[ast.literal_eval(call.args[0])] = module
    assert {name: one.module for name, one in definitions().items()} == declared


def test_an_unknown_kernel() -> None:
    with pytest.raises(KernelError, match=r'no kernel is called nonsense: no line .* @kernel\("nonsense"'):
        definition("nonsense")


def test_two_modules_that_declare_one_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / "ops").mkdir(exist_ok=True)
        (tmp_path / "ops" / f"{name}.py").write_text('@kernel("add", AddRecord)\ndef build(simd): ...\n')
    found = fresh(definitions_module)
    monkeypatch.setattr(found, "ROOT", tmp_path)
    first, second = (f"{PACKAGE}.ops.{name}" for name in ("one", "two"))
    with pytest.raises(KernelError, match=re.escape(f"two kernels are called add: in {first} and {second}")):
        found.definitions()
