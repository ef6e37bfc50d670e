"""Decisions: typed questions about a state, each answered with a probability for each option (System One)."""
