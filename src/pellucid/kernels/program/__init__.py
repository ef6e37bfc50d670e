"""The loop that every thread runs over a program, and the barrier between operations."""
