"""Threads, memory, the key/value cache and the arrays of a step.

executor.py       the threads that run programs
processors.py     cores, NUMA nodes, memory and CPU quota available to this process
resources         the same for each system: Linux, macOS, Windows
placement.py      binds threads to cores, and places weights and pages in the memory of NUMA nodes
thread_tuner.py   the number of threads for small steps
batch.py          the batch of a step, and its arrays
cache.py          the key/value cache: block tables, forks, snapshots
prefix_cache.py   pages of earlier sequences, shared by new sequences with the same prefix
cache_layout.py   the data of each layer in the cache, and the groups of layers that share pages
pool.py           pages of one size, with reference counts
memory.py         aligned memory
call.py           a compiled kernel, called from Python
"""
