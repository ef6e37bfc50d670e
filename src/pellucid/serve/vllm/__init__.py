"""vLLM's paths for encoders: request and response bodies, without HTTP.

scoring.py         /score: relevance of pairs of texts
classification.py  /classify: scores of labels
pooling.py         /pooling: what a model makes, for every task
response_form.py   the form of responses
"""
