"""Gradients of a target with respect to values of a run, on the model's own plan.

tape.py             the forward run: records what the backward pass reads
products.py         the vector-Jacobian product of each kernel
expert_products.py  the products of mixtures of experts
recurrent_products.py  the products of recurrent layers
stream_products.py  the products of several residual streams, and of sparse gates
product_values.py   the parts that products share
reverse_walk.py     the operations in reverse order, and what their products read
backward_pass.py    the gradients of points
jacobian_lens.py    mean Jacobians of blocks: the Jacobian lens
gradients.py        gradients of points, attribution patching, integrated gradients

The matrices are the dequantized weights of the file. The rounding of activations counts as the identity
(straight-through estimator, Bengio et al. 2013).
"""
