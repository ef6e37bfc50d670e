"""Declaration, compilation, caching and linking of kernels.

definitions.py       declares and discovers kernels
record.py            the arguments of a kernel, as words in memory
host.py              LLVM's description of this machine
isa.py               the instruction set that kernels are compiled for
compiler.py          compiles a function with Numba
interrupts.py        delays Ctrl-C while the compiler runs
library.py           compiles kernels or loads them from the cache
fingerprint.py       hashes of a kernel's dependencies
elf.py               reads and checks object files
linker.py            links object files into this process
compile_process.py   a process that compiles kernels
parallel.py          compiles the kernels of a new model in several processes
background.py        compiles kernels in the background, while the model runs
"""
