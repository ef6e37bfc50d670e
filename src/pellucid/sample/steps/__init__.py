"""The sampler steps, by kind.

Every step in this folder is discovered. Its ``order`` sets its position in the chain.
"""
