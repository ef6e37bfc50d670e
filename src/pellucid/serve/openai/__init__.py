"""OpenAI's API as data: what its requests ask for, and its answers.

choice.py         tools that may be called, and the form of an answer
fields.py         what requests have in common
chat.py           /v1/chat/completions
completions.py    /v1/completions
embeddings.py     /v1/embeddings
answer.py         what answers have in common: usage, reasons, log-probabilities, errors
"""
