"""Numba, told what to compile for: the only file that knows how it compiles.

By itself Numba compiles for the host with all that it has, or for what environment variables say. Kernels are compiled
for a ``Target``: they are a target of Numba's registry, with dispatchers and contexts that lead to a target machine of
their own, which optimises and emits them. Nothing is loaded here, so the target may be another machine than this one.

Importing this module imports Numba; only a kernel that is about to be compiled does so.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import binding
from numba.core import codegen, config, cpu, dispatcher, registry, target_extension
from numba.core.compiler_lock import global_compiler_lock

from pellucid.kernels.core import isa

NAME = "pellucid"
TARGET = isa.target()  # a process compiles for one


class KernelLibrary(codegen.AOTCodeLibrary):
    """A function, optimised and ready to be emitted."""

    def get_pointer_to_function(self, name):
        """Optimise, as Numba expects of this; no function has an address, since nothing is loaded."""
        self._ensure_finalized()
        return 0


class KernelCodegen(codegen.CPUCodegen):
    """Modules, passes and machine code for one target."""

    _library_class = KernelLibrary

    def _init(self, llvm_module):
        # Code may be loaded anywhere, far from what it calls.
        self._tm = target_machine()
        self._tm_features = TARGET.feature_text
        self._target_data = self._tm.target_data
        self._data_layout = str(self._target_data)
        self._loopvect, self._opt_level = (True, 3) if config.OPT.is_opt_max else (False, 0)

    def _create_empty_module(self, name):
        module = super()._create_empty_module(name)
        module.triple = TARGET.triple
        return module

    def _add_module(self, module):
        """There is no engine to give it to."""

    def set_env(self, env_name, env):
        """Nor Python objects that code would refer to."""

    def magic_tuple(self):
        return TARGET.triple, TARGET.cpu, TARGET.feature_text


class KernelContext(cpu.CPUContext):
    """How Numba's types and operations become instructions."""

    @global_compiler_lock
    def init(self):
        super().init()
        self._internal_codegen = KernelCodegen(NAME)

    def post_lowering(self, mod, library):
        """Kernels count no references: Numba's runtime is not linked to them.

        A vector that does not fit into the registers waits on the stack. The compiler finds out too late to align the
        stack for it, and half of such vectors would lie across two cache lines.
        """
        for function in mod.functions if TARGET.isa.lanes == 8 else ():
            if not function.is_declaration:
                # llvmlite prints no alignment where there is no other attribute.
                function.attributes.add("nounwind")
                function.attributes.alignstack = 64


class KernelOptions(cpu.CPUTargetOptions):
    def finalize(self, flags, options):
        flags.nrt = False
        super().finalize(flags, options)


class KernelTarget(registry.CPUTarget):
    """The contexts of Numba in which kernels are typed and lowered."""

    options = KernelOptions

    @functools.cached_property
    def _toplevel_target_context(self):
        return KernelContext(self.typing_context, self._target_name)


class KernelDispatcher(dispatcher.Dispatcher):
    """A function that is compiled for ``TARGET``."""

    targetdescr = KernelTarget(NAME)


def jit(function: Any) -> Any:
    """A helper for use inside kernels; it is inlined by LLVM, and never raises."""
    options = {
        "nopython": True, "nogil": True, "boundscheck": None, "error_model": "numpy",
        "no_cpython_wrapper": True, "no_cfunc_wrapper": True,
    }  # fmt: skip
    return KernelDispatcher(function, targetoptions=options)


class Kernels(target_extension.CPU):
    """The target, as Numba's registry knows it: what it brings itself (``min``, say) is then compiled for it too."""


target_extension.target_registry[NAME] = Kernels
target_extension.dispatcher_registry[Kernels] = KernelDispatcher
target_extension.jit_registry[Kernels] = lambda *_, **__: jit


def target_machine() -> Any:
    """LLVM's description of ``TARGET``, for code that is loaded into a running process."""
    binding.initialize_native_asmparser()  # for inline assembly
    if TARGET.triple != binding.get_process_triple():
        binding.initialize_all_targets()
        binding.initialize_all_asmprinters()
    x86 = TARGET.triple.startswith(("x86_64", "i686"))
    return binding.Target.from_triple(TARGET.triple).create_target_machine(
        cpu=TARGET.cpu,
        features=TARGET.feature_text,
        opt=int(config.OPT),  # type: ignore[attr-defined]
        reloc="static" if x86 else "default",  # as Numba has it for code that it runs
        codemodel="jitdefault",
        jit=True,
    )


def compiled(body: Any, arguments: Any) -> tuple[str, Any]:
    """A kernel's symbol, and its library, which has ``emit_native_object`` and ``get_asm_str``."""
    body.compile(arguments)
    result = body.overloads[arguments]
    return result.fndesc.llvm_func_name, result.library
