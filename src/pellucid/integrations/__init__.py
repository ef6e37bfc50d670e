"""Pellucid inside other libraries, each in a module of its own that imports the library.

``transformer_lens`` is a driver of TransformerLens 4. It needs the extra: pip install 'pellucid[transformer-lens]'.
``widgets`` shows values in notebooks with anywidget. It needs the extra: pip install 'pellucid[notebook]'. No other
module imports this folder.
"""
