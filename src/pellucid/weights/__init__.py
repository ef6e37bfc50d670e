"""Model files: their readers, where they come from, and the local store."""
