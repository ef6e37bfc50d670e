"""Activation datasets: the values of points for all tokens of a corpus, in a folder of shards."""
