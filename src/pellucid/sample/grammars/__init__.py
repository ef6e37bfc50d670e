"""Constraints on a text, matched with llguidance."""
