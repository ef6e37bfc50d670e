"""The commands, one file each. A ``Command`` or ``CommandGroup`` is discovered by being in this folder."""
