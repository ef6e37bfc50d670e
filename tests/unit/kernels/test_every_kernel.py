"""Every kernel in the folder has a test module with its file's name that mentions the kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from pellucid.kernels.core.definitions import definitions


@pytest.mark.parametrize("name", sorted(definitions()))
def test_kernel_is_tested_in_the_module_of_its_name(name: str) -> None:
    folder, module = definitions()[name].module.split(".")[-2:]
    expected = [Path(__file__).with_name(f"test_{one}.py") for one in (module, f"{folder}_{module}")]
    tests = next((one for one in expected if one.exists()), None)
    assert tests, f"kernels/{folder}/{module}.py has no tests/unit/kernels/{expected[-1].name}"
    assert f'"{name}"' in tests.read_text(), f"{tests.name} does not name the kernel {name}"
