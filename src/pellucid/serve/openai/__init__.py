"""OpenAI's API: request and response bodies, without HTTP.

common_fields.py       common rules and fields of request bodies
answer_constraints.py  tool choice and response format
chat_completions.py    /v1/chat/completions
completions.py         /v1/completions
embeddings.py          /v1/embeddings
response_parts.py      common parts of responses: usage, finish reasons, log-probabilities, errors
"""
