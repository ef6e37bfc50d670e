"""Patterns: from Oniguruma's syntax to a tree, and from the tree to a matcher or to an automaton's table.

oniguruma.py    text → tree; its parts are ``oniguruma_sets.py``, ``_case.py``, ``_repeats.py``, ``_refused.py``
tree.py         the syntax tree
matcher.py      matches a tree in Python
automaton.py    tree → transition table, for compiled code
published.py    the patterns that GGUF files name
"""
