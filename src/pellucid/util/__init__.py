"""Helpers that the other folders share."""
