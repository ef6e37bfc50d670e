"""Ollama's API: request and response bodies, without HTTP.

ollama_fields.py       fields of request bodies, and their options
chat_response.py       /api/chat
generate_response.py   /api/generate
response_chunks.py     common parts of responses: chunks, durations, log-probabilities, errors
model_descriptions.py  descriptions of models
pull.py                /api/pull
"""
