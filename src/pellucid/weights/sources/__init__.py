"""Where model files come from. One file of ``schemes/`` per source, found by being in that folder.

A spec is ``scheme:rest``; each module there has a ``SOURCE`` that knows what ``rest`` means. Adding a source
is adding a file.
"""
