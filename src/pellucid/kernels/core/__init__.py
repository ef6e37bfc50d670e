"""What kernels are made with.

definitions.py       declares kernels; discovery
record.py            the arguments of a kernel, as words in memory
host.py              the machine in LLVM's terms
isa.py               the instruction set that kernels are compiled for
compiler.py          compiles a function with Numba
interrupts.py        delays Ctrl-C while the compiler runs
library.py           compiles kernels or loads them from the cache
fingerprint.py       hashes of what a kernel depends on
elf.py               reads and checks object files
linker.py            links them into this process
compile_process.py   a process that compiles kernels
together.py          several of them compile what a new model needs
beside.py            one of them compiles while the model runs
"""
