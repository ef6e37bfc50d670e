"""OpenAI's Responses API as data, without storage: what its requests ask for, and its answers.

request.py   a body as a conversation
answer.py    /v1/responses: an answer in items, whole
events.py    the same in events
"""
