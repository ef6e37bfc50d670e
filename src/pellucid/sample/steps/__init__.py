"""The sampler steps, one file each.

Every step in this folder is discovered. Its ``order`` sets its position in the chain.
"""
