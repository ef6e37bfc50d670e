"""The formats of tool calls, one file each. Every `CallFormat` that a module here declares is known."""
