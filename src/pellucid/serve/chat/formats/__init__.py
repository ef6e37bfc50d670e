"""The formats of tool calls, by kind. Discovery finds every `CallFormat` that a module declares."""
