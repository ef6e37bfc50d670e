"""Queries of the page about a model, under the path /look."""
