"""Anthropic's Messages API: request and response bodies, without HTTP.

message_fields.py         fields of request bodies
messages_conversation.py  request body → conversation
message_response.py       /v1/messages: the response, complete or as a stream of events
"""
