"""Patterns: from Oniguruma's syntax to a tree, and from the tree to a matcher or to an automaton's table.

oniguruma.py    text → tree; ``oniguruma_sets.py`` and three other files with this prefix have its parts
tree.py         the syntax tree
matcher.py      matches a tree in Python
automaton.py    tree → transition table, for compiled code
published.py    the patterns that GGUF files name
"""
