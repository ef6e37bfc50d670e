"""What kernels are made with.

definitions.py       declares kernels; discovery
record.py            the arguments of a kernel, as words in memory
isa.py               the instruction set that kernels are compiled for
compiler.py          compiles a function with Numba
interrupts.py        delays Ctrl-C while the compiler runs
library.py           compiles kernels or loads them from the cache
fingerprint.py       hashes of what a kernel depends on
elf.py               checks object files before LLVM links them
compile_process.py   a process that compiles kernels
together.py          several of them compile what a new model needs
beside.py            one of them compiles while the model runs
"""
