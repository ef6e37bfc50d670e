"""Recurrent layers, which keep a state of fixed size instead of all earlier tokens."""
