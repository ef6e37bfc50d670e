"""A kernel that is in the folder has a test module of its file's name, and that module names the kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from pellucid.kernels.core.definitions import definitions


@pytest.mark.parametrize("name", sorted(definitions()))
def test_kernel_is_tested_in_the_module_of_its_name(name: str) -> None:
    module = definitions()[name].build.__module__.rpartition(".")[2]
    tests = Path(__file__).with_name(f"test_{module}.py")
    assert tests.exists(), f"kernels/{module}.py has no tests/unit/kernels/test_{module}.py"
    text = tests.read_text()
    assert f'"{name}"' in text, f"{tests.name} does not name the kernel {name}"
