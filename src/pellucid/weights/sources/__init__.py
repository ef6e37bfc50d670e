"""Where model files come from.

source.py     the interface of a source, and of progress callbacks
registry.py   the known sources, by scheme
schemes/      the sources, one file each

A spec is ``scheme:rest``. Each module of ``schemes/`` has a ``SOURCE`` that knows what ``rest`` means; adding a source
is adding a file.
"""
