"""Attention over the paged key/value cache, and the layout of keys and values in a page."""
