"""Ollama's API as data: what its requests ask for, and its answers.

fields.py     fields that requests have in common
chat.py       /api/chat
generate.py   /api/generate
models.py     descriptions of models
"""
