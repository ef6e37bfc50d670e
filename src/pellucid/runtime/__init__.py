"""Threads, memory, the key/value cache and the arrays of a step.

executor.py       threads that run programs
thread_tuner.py   how many of the threads run a small step while other processes are busy
batch.py          the arrays of a step: which tokens of which sequences run
cache.py          pages of keys and values, and block tables
memory.py         aligned memory
call.py           one compiled kernel, called from Python
"""
