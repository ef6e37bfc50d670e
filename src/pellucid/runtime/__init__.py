"""Threads, memory, the key/value cache and the arrays of a step.

executor.py       threads that run programs
processors.py     the cores, nodes, memory and share of the machine that this process may use
placement.py      on which cores threads run, in which memory weights and pages lie
thread_tuner.py   how many of the threads run a small step
batch.py          the arrays of a step: which tokens of which sequences run
cache.py          the key/value cache: block tables, forks, snapshots
prefix_cache.py   what the cache holds of ended texts, found by their tokens
cache_layout.py   what layers keep in the cache, and which of them share pages
pool.py           pages of one size, and who uses them
memory.py         aligned memory
call.py           one compiled kernel, called from Python
"""
