"""Compiles kernels with Numba for a ``Target``. Only this file depends on the internals of Numba's compiler.

By default Numba compiles for the host with all its features, unless environment variables change this. Kernels have a
separate target in Numba's registry. The dispatchers and contexts of this target use an LLVM target machine for
``TARGET``. This module loads no code, so ``TARGET`` may differ from the host.

The object file of a kernel is the same whatever this process has compiled before: functions are renamed, because
Numba's names contain a counter, and helpers that are inlined everywhere are removed.

Importing this module imports Numba. Import it only to compile a kernel.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import binding
from numba.core import codegen, cpu, dispatcher, registry, target_extension
from numba.core.compiler_lock import global_compiler_lock

from pellucid.kernels.core import isa

NAME = "pellucid"
TARGET = isa.target()  # a process compiles for one target
ENTRY = "kernel"  # the name of a kernel's function in its object file


class KernelLibrary(codegen.AOTCodeLibrary):
    """A compiled function that can be emitted as an object file or as assembly."""

    def get_pointer_to_function(self, name):
        """Optimise the code, as Numba expects of this method; return no address, because nothing is loaded."""
        self._ensure_finalized()
        return 0


class KernelCodegen(codegen.CPUCodegen):
    """Creates LLVM modules, optimises them and emits machine code for ``TARGET``."""

    _library_class = KernelLibrary

    def _init(self, llvm_module):
        # Code may be loaded at any address, far from the functions it calls.
        self._tm = target_machine()
        self._tm_features = TARGET.feature_text
        self._target_data = self._tm.target_data
        self._data_layout = str(self._target_data)
        self._loopvect, self._opt_level = True, 3

    def _create_empty_module(self, name):
        module = super()._create_empty_module(name)
        module.triple = TARGET.triple or binding.get_process_triple()
        return module

    def _add_module(self, module):
        """Do nothing: there is no execution engine to add the module to."""

    def set_env(self, env_name, env):
        """Do nothing: kernels refer to no Python objects."""

    def magic_tuple(self):
        return self._tm.triple, TARGET.name, self._tm_features


class KernelContext(cpu.CPUContext):
    """Lowers Numba's types and operations to LLVM IR."""

    @global_compiler_lock
    def init(self):
        super().init()
        self._internal_codegen = KernelCodegen(NAME)

    def post_lowering(self, mod, library):
        """Emit no unwind tables, align the stack on sets with 256-bit registers, do not link Numba's runtime.

        Vectors that do not fit into registers are spilled to the stack. LLVM decides on spills too late to align the
        stack for them. Without this alignment half of the spilled vectors would cross a cache line.
        """
        for function in mod.functions:
            if not function.is_declaration:
                function.attributes.add("nounwind")
                if TARGET.isa.lanes == 8:
                    function.attributes.alignstack = 64


class KernelOptions(cpu.CPUTargetOptions):
    def finalize(self, flags, options):
        flags.nrt = False
        super().finalize(flags, options)


class KernelTarget(registry.CPUTarget):
    """The Numba contexts that type and lower kernels."""

    options = KernelOptions

    @functools.cached_property
    def _toplevel_target_context(self):
        return KernelContext(self.typing_context, self._target_name)


class KernelDispatcher(dispatcher.Dispatcher):
    """A function that is compiled for ``TARGET``."""

    targetdescr = KernelTarget(NAME)


def jit(function: Any) -> Any:
    """Make a dispatcher for use in kernels. It compiles the function when a kernel first calls it.

    The compiled function raises nothing, and LLVM may inline it.
    """
    options = {
        "nopython": True, "nogil": True, "boundscheck": None, "error_model": "numpy",
        "no_cpython_wrapper": True, "no_cfunc_wrapper": True,
    }  # fmt: skip
    return KernelDispatcher(function, targetoptions=options)


class Kernels(target_extension.CPU):
    """The target in Numba's registry, so that Numba's own functions, such as ``min``, are compiled for it too."""


target_extension.target_registry[NAME] = Kernels
target_extension.dispatcher_registry[Kernels] = KernelDispatcher
target_extension.jit_registry[Kernels] = lambda *_, **__: jit


def target_machine() -> Any:
    """Create LLVM's target machine for ``TARGET``, for code that is loaded into a running process."""
    triple, cpu, features = TARGET.triple, TARGET.cpu, TARGET.feature_text
    if triple == isa.HOST_TRIPLE:
        triple, cpu = binding.get_process_triple(), binding.get_host_cpu_name()
        features = binding.get_host_cpu_features().flatten()
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
    else:
        binding.initialize_all_targets()
        binding.initialize_all_asmprinters()
    binding.initialize_native_asmparser()  # for inline assembly
    return binding.Target.from_triple(triple).create_target_machine(
        cpu=cpu,
        features=features,
        opt=3,
        reloc="static" if TARGET.machine == "x86_64" else "default",  # as Numba does for code that it runs
        codemodel="jitdefault",
        jit=True,
    )


def compiled(body: Any, arguments: Any) -> Any:
    """Compile a kernel. Returns its library, with ``emit_native_object`` and ``get_asm_str``; its function is ENTRY."""
    body.compile(arguments)
    result = body.overloads[arguments]
    library = result.library
    _rename(library._final_module, result.fndesc.llvm_func_name)
    return library


def _rename(module: Any, entry: str) -> None:
    """Give functions names that depend on their order only. Remove functions that nothing calls."""
    for function in module.functions:
        if not function.is_declaration and function.name != entry:
            function.linkage = "internal"
    for variable in module.global_variables:
        if not variable.is_declaration:
            variable.linkage = "internal"
    manager = binding.create_new_module_pass_manager()
    manager.add_global_dead_code_eliminate_pass()
    builder = binding.create_pass_builder(target_machine(), binding.create_pipeline_tuning_options())
    manager.run(module, builder)
    defined = [function for function in module.functions if not function.is_declaration]
    for number, function in enumerate(defined):
        function.name = ENTRY if function.name == entry else f"{ENTRY}.{number}"
