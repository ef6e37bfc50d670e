"""Sources of model files.

source.py     the interface of a source, the known sources, and progress callbacks
schemes/      the sources, one file each

A spec is ``scheme:rest``. Each module of ``schemes/`` has a ``SOURCE`` that interprets ``rest``. A new source needs
only a new file.
"""
