"""The stages in Python, except the model (``kinds/``), in the order of an encoding."""
