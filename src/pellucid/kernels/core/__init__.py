"""Declaration, compilation, caching and linking of kernels.

definitions.py       declares and discovers kernels
record.py            the arguments of a kernel, as words in memory
host.py              the system and the processor of this process
isa.py               instruction sets, and the target that kernels are compiled for
compiler.py          compiles a function with Numba
interrupts.py        delays Ctrl-C while the compiler runs
library.py           loads kernels from the installation or the cache, or compiles them
objects.py           the compiled kernels of an installation
fingerprint.py       hashes of a kernel's dependencies
elf.py               reads and checks object files
linker.py            links object files into this process
code_memory.py       memory that holds code, and functions of the system
compile_process.py   a process that compiles kernels
parallel.py          compiles the kernels of a new model in several processes
background.py        compiles kernels in the background, while the model runs
"""
