"""Threads, memory, the key/value cache and the arrays of a step."""
