"""OpenAI's Responses API: request and response bodies, without HTTP.

schema.py       schemas of request bodies
request.py      request body and stored responses → conversation
truncation.py   truncation of long conversations; token counts
answer.py       /v1/responses: the response as items
events.py       the items as a stream of events
shown.py        request fields that the response repeats
store.py        stored responses
listing.py      input items of a response, page by page
"""
