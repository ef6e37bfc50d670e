"""OpenAI's API as data: what its requests ask for, and its answers.

asked.py          what a request is once its body has been read
body.py           checks of a body's fields; an error names the field, the value and the limit
chat.py           /v1/chat/completions
completions.py    /v1/completions
embeddings.py     /v1/embeddings
answer.py         what answers have in common: usage, reasons, log-probabilities, errors
"""
