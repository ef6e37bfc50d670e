"""Recurrent layers, one file per kind. (T, D) → (T, D)."""
