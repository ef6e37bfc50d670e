"""Queries of the page about a model, under the path /look.

queries.py        the queries that also run on replicas, by the last part of their path
prompt_fields.py  common fields: a prompt, and edits of values
edit_fields.py    edits of values, and of features of dictionaries
active_features.py  the active features of a prompt
attribution_graphs.py  /look/graph: an attribution graph
token_events.py   /look/generate: text with the probabilities of its tokens
streamed_values.py  values of points in the stream of /look/generate
trace_reading.py  /look/trace: recorded values
explanations.py   lenses, attribution, tokenization, nearest tokens
beam_tree.py      /look/beams: a beam search with its tree
running_model.py  state of a running model, and the times of a step
weight_rows.py    the weights of one number of a point
model_facts.py    shape of a model, and its hook points
token_fields.py   tokens in the page's form
"""
