"""The commands. A module here declares a ``Command`` or a ``CommandGroup``; nothing is listed twice."""
