"""From a model's spec to a plan, the list of operations that a step runs, and to the program that executes it.

plan.py          ``Plan``, ``Operation``, ``Buffer``: the data
builder.py       what a plan is built with; the matrix product
embedding.py     token ids → vectors
position.py      learned, rotary and ALiBi positions
per_layer.py     embeddings for each layer, and what a block does with its own
streams.py       several residual streams, and a learned residual beside attention
block.py         a transformer block, made of the next five
attention.py     attention over the cache
recurrent/       recurrent layers, by kind
feedforward.py   feed-forward
mixture.py       mixtures of experts
norm.py          normalisation
project.py       the final norm, then logits or pooled vectors
passes.py        rewrites of the list: operations are fused, barriers placed
weights.py       the packed matrices and the vectors of a plan
bind.py          addresses are filled in
"""
