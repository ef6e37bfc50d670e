"""Ollama's API: request and response bodies, without HTTP.

fields.py     common fields
chat.py       /api/chat
generate.py   /api/generate
models.py     descriptions of models
pulling.py    /api/pull
"""
