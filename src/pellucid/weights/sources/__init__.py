"""Sources of model files.

A spec is ``scheme:rest``. A module such as ``pypi.py`` has a ``SOURCE`` that interprets ``rest``. A new source needs
only a new file.
"""
