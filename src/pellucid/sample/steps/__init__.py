"""The steps of the chain. A step is a module of this folder with a ``Step`` in it; nothing is listed twice."""
