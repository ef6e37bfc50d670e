"""The machine that the kernels run on: processor, memory, instruction set, folder of compiled kernels, versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pellucid import __version__
from pellucid.kernels.core import isa
from pellucid.kernels.core.host import host
from pellucid.kernels.core.library import cache_folder
from pellucid.kernels.core.objects import installed
from pellucid.runtime.placement import may_place
from pellucid.runtime.processors import Processors, core_count, machine_bytes, processors

VECTORS = ("sse4", "avx", "f16c", "fma", "amx", "neon", "dotprod", "i8mm", "bf16", "fp16", "sve")


def facts() -> dict[str, Any]:
    """Facts about the machine, in display order: name → text, integer or list of words.

    Raises:
        InvalidRequest: ``PELLUCID_ISA`` names an instruction set that is unknown or not available.
    """
    usable = processors()
    chosen, folder = isa.choose(), cache_folder()
    features = sorted(name for name in host().features if name.startswith(VECTORS))
    return {
        "cpu": cpu_name(),
        "cores": _cores(usable),
        "processors": os.cpu_count() or 1,
        "usable processors": usable.usable,
        "memory nodes": _nodes(usable),
        "threads": usable.threads,
        "memory": _memory(),
        "instructions": f"{chosen.name} ({chosen.description})",
        "kernels for": isa.target().name,
        "possible": [known.name for known in isa.possible()],
        "features": features,
        "kernels": str(folder),
        "kernels installed": len(installed()),
        "kernels compiled": len(list(folder.glob("*.o"))),
        "pellucid": __version__,
        "python": platform.python_version(),
        **{package: _version(package) for package in ("numpy", "numba", "llvmlite")},
        "system": platform.platform(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def cpu_name() -> str:
    """The vendor's name of the processor, or the name of its architecture."""
    return host().name or host().machine


def _cores(usable: Processors) -> int | str:
    """The number of cores, with the number of efficiency cores if there are any."""
    slow = sum(core.efficiency for core in usable.cores)
    count = core_count() or len(usable.cores)
    return f"{count} (with {slow} efficiency cores)" if slow else count


def _nodes(usable: Processors) -> int | str:
    """The number of memory (NUMA) nodes, with a remark if this process cannot place weights on a node."""
    count = len(usable.nodes)
    return f"{count} (this process may not place memory on them)" if count > 1 and not may_place() else count


def _memory() -> str:
    return f"{size / 1e9:.1f} GB" if (size := machine_bytes()) else "unknown"
