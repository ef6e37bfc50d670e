"""What the page asks of a model: texts with the probabilities of their tokens, recorded values, lenses."""
