"""Helpers that the other folders share.

checks.py      checks of user values by type and range
collection.py  delays or advances garbage collection
display.py     HTML tables and heat maps
paths.py       folders for files that outlive a process
private.py     files that are used without further checks: compiled kernels, parsed vocabularies
registry.py    discovery of the objects that a package's modules declare
"""
