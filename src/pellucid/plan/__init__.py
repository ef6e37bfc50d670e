"""Builds a plan from the spec of a model, and binds it to memory as a program.

A plan is the list of operations that a step runs.

plan.py          ``Plan``, ``Operation``, ``Buffer``: the data
points.py        ``Point``, ``View``: hook points, the values that traces record and change
builder.py       collects buffers, operations and points; the matrix product
embedding.py     token ids → vectors
position.py      learned, rotary, relative and ALiBi positions
relative.py      keys and queries of relative positions, computed once when the model is loaded
convolution.py   a convolution of the embeddings over neighbouring tokens
per_layer.py     per-layer embeddings, and their use in a block
streams.py       several residual streams, and a learned residual beside attention
block.py         a transformer block, built from the next files
attention.py     attention; latent_attention.py, cached_attention.py, heads.py are its parts
cross_attention.py  attention to the source of an encoder-decoder
recurrent/       recurrent layers, one file per kind
feedforward.py   feed-forward
mixture.py       mixtures of experts
norm.py          normalization
outputs.py            final norm, pooling, output layers, projection to the vocabulary
passes.py        rewrites of the list: fuse operations, place barriers
traced_plan.py   operations that record or change values
dataflow.py      the operation and the inputs of each point
weights.py       the packed matrices and the vectors of a plan
bind.py          fills addresses into a plan, and so makes the program
pipeline_stages.py  pipeline stages: parts of a plan for several machines
"""
