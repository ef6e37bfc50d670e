"""Imports are part of the startup time of a command: heavy modules load only when they are needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny import write_llama
from support.tokenizer_file import write_tokenizer

from pellucid.kernels.core import linker

HEAVY = (
    *("numpy", "numba", "llvmlite", "jinja2", "regex", "huggingface_hub", "typer", "rich"),
    *("filelock", "platformdirs", "torch", "asyncio", "ssl"),
)


def modules_after(code: str) -> set[str]:
    """The top-level modules that a new process has loaded after running ``code``."""
    report = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert modules_after("import pellucid") & set(HEAVY) == set()


def test_errors_and_names_are_there_without_numpy() -> None:
    loaded = modules_after(
        "import pellucid; pellucid.errors.InvalidRequest; dir(pellucid); pellucid.__version__"
    )
    assert loaded & set(HEAVY) == set()


def test_everything_that_is_offered_can_be_had() -> None:
    import pellucid

    for name in pellucid.__all__:
        assert getattr(pellucid, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = pellucid.no_such_name  # type: ignore[attr-defined]


def test_running_a_model_with_kernels_compiled_imports_no_compiler(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "tiny")
    write_tokenizer(folder)
    code = f"""
import pellucid
llm = pellucid.load({str(folder)!r}, threads=1)
made = llm.generate("the rain", temperature=0.8, seed=1, max_new_tokens=4)
assert made.ids
llm.close()
"""
    modules_after(code)  # compiles if necessary
    loaded = modules_after(code)
    assert ("llvmlite" in loaded) is not linker.without_llvm()
    assert loaded & {"numba", "jinja2", "huggingface_hub", "typer", "rich", "torch"} == set()
