"""OpenAI's Responses API as data: what its requests ask for, and its answers.

schema.py       the fields of requests
request.py      a body as a conversation, after those that are kept
truncation.py   conversations that are too long; the number of their tokens
answer.py       /v1/responses: an answer in items, whole
events.py       the same in events
shown.py        the fields of a request that its answer repeats
store.py        the responses that are kept
listing.py      the input items of a response, page by page
"""
