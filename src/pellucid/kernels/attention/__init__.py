"""Attention over the paged key/value cache, and how a page holds keys and values."""
