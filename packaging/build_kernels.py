"""Compile the kernels of wheels, for all targets of a system, on any machine: python packaging/build_kernels.py SYSTEM.

Compiled objects are kept under build/kernels, so an interrupted build continues, and a change of some sources compiles
only the kernels that depend on them. The files that wheels contain are written to src/pellucid/kernels/objects. The
same sources, Python, Numba and LLVM make the same bytes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from catalogue import SYSTEMS, kernels, targets

from pellucid.kernels.core import isa, objects
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.isa import Target
from pellucid.kernels.core.library import compile_kernel, file_name
from pellucid.util.paths import staged

KERNELS_PER_PROCESS = 30  # Numba keeps what it has compiled: 4 MB for a kernel
BUILD = Path(__file__).parents[1] / "build" / "kernels"
FIRST = ("attention", "matmul")  # the names of kernels that take longest begin so


def compile_for(target: Target) -> None:
    """Make this process compile for a target. Call it before the compiler is imported."""
    isa.choose = lambda: target.isa
    isa.target = lambda: target


def _compile(work: tuple[KernelKey, Path]) -> None:
    key, path = work
    with staged(path.parent, compile_kernel(key)) as written:
        os.replace(written, path)


def _missing(folder: Path, keys: list[KernelKey]) -> Iterator[tuple[KernelKey, Path]]:
    for key in sorted(keys, key=lambda key: not key.name.startswith(FIRST)):
        path = folder / file_name(key)
        if not path.exists():
            yield key, path


def build(target: Target, keys: list[KernelKey], workers: int) -> None:
    """Compile what is missing and write the file of a target."""
    folder, start = BUILD / target.name, time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    missing = list(_missing(folder, keys))
    with get_context("spawn").Pool(workers, compile_for, (target,), KERNELS_PER_PROCESS) as pool:
        for done, _ in enumerate(pool.imap_unordered(_compile, missing), 1):
            if sys.stderr.isatty():
                print(f"\r{target.name}: {done} of {len(missing)} kernels", end="", file=sys.stderr)
    contents = {name: (folder / name).read_bytes() for name in map(file_name, keys)}
    path = objects.path_of(target.name)
    objects.write(path, contents)
    said = f"{len(contents)} kernels, {len(missing)} compiled in {time.monotonic() - start:.0f} s"
    print(f"{target.name}: {said}, {path.stat().st_size / 1e6:.2f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("systems", nargs="*", choices=[*SYSTEMS, []], help="the systems (all by default)")
    parser.add_argument("--targets", help="only the targets whose names contain this text")
    parser.add_argument("--cached", type=Path, help="only the kernels that this cache of compiled kernels has")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    keys = [key for key in kernels() if not given.cached or any(given.cached.rglob(file_name(key)))]
    for system in given.systems or SYSTEMS:
        for target in targets(system):
            if not given.targets or given.targets in target.name:
                build(target, keys, given.workers)


if __name__ == "__main__":
    main()
