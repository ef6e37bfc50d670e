"""The formats of tool calls, one file each. Discovery finds every `CallFormat` that a module declares."""
