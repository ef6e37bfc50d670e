"""Tasks: the kinds of work that the engine runs. Each keeps its sequences, and processes their outputs."""
