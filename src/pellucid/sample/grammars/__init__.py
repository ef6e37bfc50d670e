"""Constraints on a text, matched with llguidance.

grammar.py      an option's value → a checked grammar
schema.py       checks of JSON schemas
finite.py       parts of a schema that no finite text satisfies
overlap.py      alternatives of a schema that exclude each other
subschemas.py   the parts of a schema, and the place of a problem
runs.py         the length of the text that a grammar may force
problems.py     error messages for constraints
vocabulary.py   a vocabulary as llguidance reads it
matching.py     the state of a text in a grammar, and the tokens that may come next
workers.py      the threads that compile grammars and compute masks
"""
