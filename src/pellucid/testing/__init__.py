"""Random models of any family and shape, for tests, teaching and measurements."""

from pellucid.testing.random_model import planned_model, random_model

__all__ = ["planned_model", "random_model"]
