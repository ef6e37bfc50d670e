"""Patterns: from Oniguruma's syntax to a tree, and from the tree to a matcher or to an automaton's table."""
