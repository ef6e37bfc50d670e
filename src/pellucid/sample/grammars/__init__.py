"""Constraints on a text, matched with llguidance.

grammar.py    an option's value → a checked grammar
schema.py     checks of JSON schemas
matching.py   the state of a text in a grammar, and the tokens that may come next
"""
