"""LLVM's description of this machine: the triple, and the CPU's name and features.

LLVM takes 40 ms to load. On Linux with x86-64 kernels are linked without LLVM (``linker.py``), so LLVM's description is
cached beside the compiled kernels. The file name is a hash of Linux's description of the processor and of LLVM's
version. A program that emulates another processor while Linux still names the real processor (Intel's SDE, Valgrind)
needs its own home folder (``PELLUCID_HOME``).
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from pellucid.errors import InvalidRequest
from pellucid.kernels.core.linker import WITHOUT_LLVM
from pellucid.util.trusted_files import TrustedFolder

FOLDER = "machines"
FORMAT = b"1"  # format version of the cached description
MAX_FILES = 16  # machines of several kinds may share a home folder
_CPUINFO = Path("/proc/cpuinfo")
_FIELDS = re.compile(rb"^(?:vendor_id|cpu family|model|model name|stepping|flags)[ \t]*:.*$", re.MULTILINE)


class Host(NamedTuple):
    """A machine: LLVM's triple, the CPU's name, its features, and the features known to LLVM that it lacks."""

    triple: str
    cpu: str
    features: frozenset[str]
    lacks: frozenset[str]


@functools.cache
def host() -> Host:
    """Return LLVM's description of this machine, from the cache if possible."""
    name = _file_name() if WITHOUT_LLVM else None
    if name is None:
        return _ask_llvm()
    try:
        folder = TrustedFolder(FOLDER)
    except InvalidRequest:  # there is no home folder; code that needs it reports the error
        return _ask_llvm()
    if (cached := folder.read(name, used=True)) is not None:
        triple, cpu, features, lacks = json.loads(cached)
        return Host(triple, cpu, frozenset(features), frozenset(lacks))
    answer = _ask_llvm()
    cached = json.dumps([answer.triple, answer.cpu, sorted(answer.features), sorted(answer.lacks)]).encode()
    folder.write(name, cached, most=MAX_FILES)
    return answer


def _ask_llvm() -> Host:
    from llvmlite import binding

    known = binding.get_host_cpu_features()
    features = frozenset(name for name, present in known.items() if present)
    lacks = frozenset(known) - features
    return Host(binding.get_process_triple(), binding.get_host_cpu_name(), features, lacks)


def _file_name() -> str | None:
    """Return the file name of the cached description, or None if Linux does not describe the processor."""
    try:
        with _CPUINFO.open("rb") as file:
            first = file.read(1 << 14).partition(b"\n\n")[0]
    except OSError:
        return None
    lines = _FIELDS.findall(first)
    if not any(line.startswith(b"flags") for line in lines):
        return None
    content = b"\n".join([FORMAT, *lines, package_version("llvmlite").encode()])
    return hashlib.sha256(content).hexdigest()[:20]


def package_version(package: str) -> str:
    """Return a text that identifies the installed version of a package: the contents of its ``_version.py``.

    Packages made with versioneer have this file. For other packages ``importlib.metadata`` returns the version, but
    importing it takes longer than the rest of this module.
    """
    try:
        return Path(find_spec(package).origin).with_name("_version.py").read_text()  # type: ignore[union-attr, arg-type]
    except (OSError, AttributeError, TypeError):
        from importlib.metadata import version

        return version(package)
