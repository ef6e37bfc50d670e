"""The spec of a model, and the readers that derive it from a checkpoint."""
