"""Lenses: analyses of the values of a trace, one lens per file."""
