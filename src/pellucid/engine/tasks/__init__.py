"""Tasks: the kinds of work that the engine runs. Each task keeps its sequences, and processes their outputs."""
