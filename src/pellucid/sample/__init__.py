"""Sampling: from logits to a token, and the stop criteria.

logits → sampler steps, in order → softmax → draw → token
"""
