"""Recurrent layers: one kind a file. (T, D) → (T, D)."""
