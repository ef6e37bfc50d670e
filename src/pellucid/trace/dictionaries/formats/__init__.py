"""Formats of dictionaries. A module declares a ``DictionaryFormat``; ``Dictionary.open`` finds it."""
