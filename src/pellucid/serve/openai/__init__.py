"""OpenAI's API: request and response bodies, without HTTP.

choice.py         tool choice and response format
fields.py         common request fields
chat.py           /v1/chat/completions
completions.py    /v1/completions
embeddings.py     /v1/embeddings
answer.py         common parts of responses: usage, finish reasons, log-probabilities, errors
"""
