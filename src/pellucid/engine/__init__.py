"""Requests, and the engine that runs them together on one model."""
