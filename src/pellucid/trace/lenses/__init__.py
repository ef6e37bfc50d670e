"""Lenses: what the values of a trace say. Each file is one of them."""
