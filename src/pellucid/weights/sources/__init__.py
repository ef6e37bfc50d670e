"""Sources of model files.

A spec is ``scheme:rest``. Each module of ``schemes/`` has a ``SOURCE`` that interprets ``rest``. A new source needs
only a new file.
"""
