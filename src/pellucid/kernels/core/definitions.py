"""Declares kernels: a name, a record and a function that builds the body. Discovery searches sources for the decorator.

    @kernel("add", AddRecord)
    def build_add(simd, **parameters):
        @simd.jit
        def body(record, step, thread, threads): ...
        return body

The body of an operation takes four integers: the address of its record, the address of the step's record
(``record.py``), the index of its thread, and the number of threads. All threads call the body; each works on its part.
The body returns nothing, raises nothing and allocates nothing. Kernels that Python calls directly (in ``text``,
``ops/logits.py``, ``program`` and ``matmul/pack.py``) also take four integers, but most use only the address of their
record.

A compiled body is a C function with Numba's calling convention: it takes the addresses for a return value and for an
error, then the four integers, and returns an int32 status.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec import Struct

from pellucid.errors import KernelError
from pellucid.kernels.core.record import Record
from pellucid.util.registry import file_of


@dataclass(frozen=True, init=False, eq=False)
class KernelKey:
    """Identifies a kernel by its name and the parameters that it is generated for (hashable values).

    KernelKey("norm", kind="rms", activation_bits=8)
    """

    name: str
    parameters: tuple[tuple[str, Any], ...]
    _identity: tuple[Any, ...] = field(repr=False, compare=False)

    def __init__(self, name: str, **parameters: Any) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "parameters", tuple(parameters.items()))
        # The identity does not depend on the order of the parameters. It is stored, because loading a model hashes keys
        # several thousand times.
        object.__setattr__(self, "_identity", (name, *sorted(self.parameters)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KernelKey) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __getitem__(self, parameter: str) -> Any:
        return dict(self.parameters)[parameter]

    def replace(self, **parameters: Any) -> KernelKey:
        """Return the key with other values of some parameters."""
        return KernelKey(self.name, **(dict(self.parameters) | parameters))

    def __repr__(self) -> str:
        parameters = "".join(f", {name}={value!r}" for name, value in self.parameters)
        return f"KernelKey({self.name!r}{parameters})"

    def __str__(self) -> str:
        return " ".join([self.name, *(str(value) for _, value in self.parameters)])

    @property
    def file_stem(self) -> str:
        """File name for the key: a readable name and a hash of all parameters."""
        exact = hashlib.sha256(repr(self._identity).encode()).hexdigest()[:12]
        return f"{self.name}-{exact}"


class Traits(Struct, frozen=True):
    """Properties of a kernel that passes of a plan use.

    ``by_row`` is True if a row of each output depends only on the same row of each input, and the record's field
    ``rows`` is the number of rows. The kernel can then run on some rows of a step. ``product`` is True for a matrix
    product, which can add its output to another buffer and read a replicated input. ``quantizes`` is set if the kernel
    can also write its output as activation blocks. It names the record's field, or the kernel's parameter, that must be
    a multiple of the block size, so that no two threads write to the same block.
    """

    by_row: bool = False
    product: bool = False
    quantizes: str = ""


class Definition(Struct, frozen=True):
    """A declared kernel: its name, its record, the function that builds its body, and its traits."""

    name: str
    record: type[Record] | None
    build: Callable[..., Any]
    traits: Traits = Traits()

    @property
    def module(self) -> str:
        """Name of the module that declares the kernel."""
        return self.build.__module__


PACKAGE = "pellucid.kernels"
ROOT = Path(__file__).parents[1]
_NO_KERNELS = ("simd",)  # folders that declare no kernels
_DECLARATION = '\n@kernel("'
_definitions: dict[str, Definition] = {}


def kernel(
    name: str, record: type[Record] | None = None, **traits: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a kernel with its ``Traits``.

    The decorated function is ``build(simd, **parameters)`` and returns the kernel's body.
    """

    def declare(build: Callable[..., Any]) -> Callable[..., Any]:
        if name in _definitions:
            raise KernelError(
                f"two kernels are called {name}: in {file_of(_definitions[name].build)} and {file_of(build)}"
            )
        _definitions[name] = Definition(name, record, build, Traits(**traits))
        return build

    return declare


@functools.cache
def _modules() -> dict[str, str]:
    """Map the name of each kernel to the module that declares it, as found in the sources.

    A process needs some fifteen kernels. Importing all modules instead would take 40 ms.
    """
    modules: dict[str, str] = {}
    for folder in sorted(path for path in ROOT.iterdir() if path.is_dir() and path.name not in _NO_KERNELS):
        for file in sorted(folder.rglob("*.py")):
            for declared in f"\n{file.read_text('utf-8')}".split(_DECLARATION)[1:]:
                name = declared.partition('"')[0]
                module = ".".join((PACKAGE, *file.relative_to(ROOT).with_suffix("").parts))
                if modules.setdefault(name, module) != module:
                    raise KernelError(f"two kernels are called {name}: in {modules[name]} and {module}")
    return modules


def definitions() -> dict[str, Definition]:
    """All kernels of the package, by name."""
    return {name: definition(name) for name in _modules()}


@functools.cache
def definition(name: str) -> Definition:
    """Return the kernel with this name. Imports the module that declares it.

    Raises:
        KernelError: no kernel has this name.
    """
    if (module := _modules().get(name)) is not None:
        importlib.import_module(module)  # also waits if another thread is importing it
    elif name not in _definitions:
        raise KernelError(f'no kernel is called {name}: no line of kernels/ begins with @kernel("{name}"')
    return _definitions[name]
