"""Builds a wheel with the kernels of a tiny model from a clone, and generates text where no compiler is installed.

    python tests/wheel.py [PYTHON]    (make test-wheel; two minutes)

The clone has the last commit, and only what ``make wheel`` itself installs: neither the extra ``dev`` nor compiled
kernels. The wheel and the source give the same text.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODEL = """
import sys
from pellucid.testing import random_model
random_model("llama", sys.argv[1], form="Q4_0", width=128, heads=2, head_dim=64)
"""
OF_MAKE = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "VENV", "SYSTEM", "KERNELS")
"""Variables of a ``make`` that runs this script. The clone's ``make`` must not see them."""
TARGET = "from pellucid.kernels.core.isa import target; print(target().name)"
NO_COMPILER = """
import importlib.util
found = [name for name in ("numba", "llvmlite") if importlib.util.find_spec(name)]
assert not found, f"the wheel has installed {found}"
from pellucid.kernels.core import objects
assert len(objects.installed()), "the wheel has no kernels of this machine"
"""


def ran(*command: str | Path, cwd: Path, variables: Mapping[str, str] | None = None) -> str:
    """The output of a command, whose errors are shown. Raises :class:`subprocess.CalledProcessError`."""
    print("$", *command, flush=True)
    own = {name: value for name, value in os.environ.items() if name not in OF_MAKE}
    environment = {**own, **(variables or {})}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, check=True, stdout=subprocess.PIPE)
    return done.stdout.decode()


def main(folder: Path, python: str) -> None:
    """Build and install a wheel below a folder, and compare its text. Raises :class:`AssertionError`."""
    clone, model, bare = folder / "clone", folder / "tiny.gguf", folder / "bare"
    ran("git", "clone", "--quiet", "--depth", "1", ROOT.as_uri(), clone, cwd=folder)
    ran("make", ".venv/installed", f"PYTHON={python}", cwd=clone)
    source = clone / ".venv" / "bin"
    ran(source / "python", "-c", MODEL, model, cwd=folder)
    answer = ("run", model, "--raw", "One two three", "--temperature", "0", "--max-new-tokens", "16")
    wanted = ran(source / "pellucid", *answer, cwd=folder, variables={"PELLUCID_HOME": str(folder / "source")})
    target = ran(source / "python", "-c", TARGET, cwd=folder).strip()
    kernels = f"--targets {target} --cached {folder / 'source'}"
    print(ran("make", "wheel", f"PYTHON={python}", f"KERNELS={kernels}", cwd=clone))

    ran(python, "-m", "venv", bare, cwd=folder)
    wheel = next((clone / "dist").glob("*.whl"))
    ran(bare / "bin" / "python", "-m", "pip", "install", "--quiet", wheel, cwd=folder)
    ran(bare / "bin" / "python", "-c", NO_COMPILER, cwd=folder)
    found = ran(bare / "bin" / "pellucid", *answer, cwd=folder, variables={"PELLUCID_HOME": str(folder / "wheel")})
    assert found == wanted != "", (found, wanted)
    print(f"{wheel.name} generates the text of the source: {found!r}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="pellucid-wheel-") as name:
        main(Path(name), (sys.argv[1:] or [sys.executable])[0])
