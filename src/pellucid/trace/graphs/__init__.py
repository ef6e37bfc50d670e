"""Attribution graphs: the linear effects of features, neurons and heads on each other and on the logits of one prompt.

build.py              attribution_graph: the run, the choice of nodes, and their edges
local_run.py          a run as its local replacement model
local_model.py        the linear map of this model, applied backwards
frozen_products.py    the linear form of each operation; frozen_patterns.py: attention patterns
units.py              units of feed-forwards: directions, vectors, activations; neurons.py,
                      expert_neurons.py, transcoder_features.py
candidates.py         the units and heads with the largest attributions
sources.py, edges.py  the sources of edges, and the edges of some targets
targets.py            logits and functions of logits
influence.py          influence over all paths
attribution_graph.py  the graph: influence, scores, pruning, groups, export; graph_node.py: a node
interventions.py      changes of nodes: predicted and measured effects
promoted.py           the tokens that units promote
neuronpedia.py        Neuronpedia's file format

Source: Ameisen et al. 2025, "Circuit Tracing: Revealing Computational Graphs in Language Models".
"""
