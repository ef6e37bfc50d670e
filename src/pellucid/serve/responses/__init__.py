"""OpenAI's Responses API: request and response bodies, without HTTP.

response_fields.py     fields of request bodies
input_conversation.py  request body and stored responses → conversation
truncation.py          truncation of long conversations; token counts
response.py            /v1/responses: the response as items
item_events.py         the items as a stream of events
echoed_fields.py       request fields that the response repeats
response_store.py      stored responses
input_items.py         input items of a response, page by page
"""
