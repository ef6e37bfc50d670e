"""The commands. Every ``Command`` and ``CommandGroup`` in this folder is discovered."""
