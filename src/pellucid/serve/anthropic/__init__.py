"""Anthropic's Messages API as data: what its requests ask for, and its answers.

request.py   a body as a conversation
answer.py    /v1/messages: an answer, whole or in events
"""
