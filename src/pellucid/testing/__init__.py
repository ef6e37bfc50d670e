"""Random models of any family and shape, for tests, teaching and measurements.

random_model.py   metadata, tensors and their values
byte_tokens.py    a tokenizer whose tokens are the 256 bytes
"""

from pellucid.testing.random_model import planned_model, random_model

__all__ = ["planned_model", "random_model"]
