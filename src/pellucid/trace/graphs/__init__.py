"""Attribution graphs: the linear effects of features, neurons and heads on each other and on the logits of one prompt.

Source: Ameisen et al. 2025, "Circuit Tracing: Revealing Computational Graphs in Language Models".
"""
