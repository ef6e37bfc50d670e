"""Builds a plan from the spec of a model, and binds it to memory as a program.

A plan is the list of operations that a step runs.
"""
