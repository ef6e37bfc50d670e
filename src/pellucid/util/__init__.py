"""Helpers that the other folders share.

checks.py      checks of users' values by type and range
collection.py  puts off garbage collection
paths.py       the folders for what outlives a process
private.py     files that are used without further checks: compiled kernels, parsed vocabularies
registry.py    discovery of what the modules of a package declare
"""
