"""Imports are part of the startup time of a command: heavy modules load only when they are needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.tiny import write_llama
from support.tokenizer_file import write_tokenizer

import pellucid
from pellucid.kernels.core import linker

HEAVY = (
    *("numpy", "numba", "llvmlite", "jinja2", "regex", "huggingface_hub", "typer", "rich"),
    *("filelock", "platformdirs", "torch", "asyncio", "ssl"),
)


def modules_after(code: str) -> set[str]:
    """The top-level modules that a new process has loaded after running ``code``."""
    report = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert modules_after("import pellucid") & set(HEAVY) == set()


def test_errors_and_names_are_there_without_numpy() -> None:
    loaded = modules_after("import pellucid; pellucid.errors.InvalidRequest; dir(pellucid); pellucid.__version__")
    assert loaded & set(HEAVY) == set()


def test_everything_that_is_offered_can_be_had() -> None:
    for name in pellucid.__all__:
        assert getattr(pellucid, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = pellucid.no_such_name  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_zip_file_is_refused_in_a_line(tmp_path: Path) -> None:
    package = Path(pellucid.__file__).parent
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for path in sorted(package.rglob("*")):
            if path.is_file() and path.suffix in (".py", ".json", ".txt"):
                archive.write(path, path.relative_to(package.parent))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "p.zip")}
    said = "pellucid cannot run inside a zip file: unpack it, or use pip"
    for arguments in (["-m", "pellucid", "list"], ["-m", "pellucid"]):
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{said}\n")
    code = "import pellucid\ntry: pellucid.load\nexcept ImportError as error: print(error)"
    assert (
        subprocess.check_output([sys.executable, "-c", code], text=True, env=environment, cwd=tmp_path) == f"{said}\n"
    )


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
