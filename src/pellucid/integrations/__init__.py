"""Pellucid inside other libraries, each in a module of its own that imports the library.

``transformer_lens`` is a driver of TransformerLens 4. It needs the extra: pip install 'pellucid[transformer-lens]'. No
other module imports this folder.
"""
