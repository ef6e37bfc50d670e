"""The sampler steps, one file each.

A step is discovered by being in this folder; ``order`` is its place in the chain.
"""
