"""The commands, one file each. Every ``Command`` and ``CommandGroup`` in this folder is discovered."""
