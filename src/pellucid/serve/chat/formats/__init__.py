"""The formats in which models write calls of tools, one file each. Every `CallFormat` here is known."""
