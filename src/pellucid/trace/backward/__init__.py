"""Gradients of a target with respect to values of a run, on the model's own plan.

The matrices are the dequantized weights of the file. The rounding of activations counts as the identity
(straight-through estimator, Bengio et al. 2013).
"""
