"""Requests of the page about a model: generated text with token probabilities, recorded values, lenses."""
