"""Anthropic's Messages API: request and response bodies, without HTTP.

request.py   request body → conversation
answer.py    /v1/messages: the response, complete or as a stream of events
"""
