"""Mistral: a control token, then a list of JSON objects with ids.

In later models a call has a control token before its name and a control token before its arguments.
"""

from pellucid.serve.chat.call_format import JsonCalls

MISTRAL_LIST = JsonCalls(
    "mistral-list",
    marks=("[TOOL_CALLS] [{",),
    id_length=9,
    trigger="[TOOL_CALLS]",
    begin="[TOOL_CALLS][",
    before='{"name": "',
    middle='", "arguments": ',
    after=', "id": "{id}"}',
    between=", ",
    end="]",
)
MISTRAL = JsonCalls("mistral", id_length=9, trigger="[TOOL_CALLS]", before="[TOOL_CALLS]", middle="[ARGS]")
MISTRAL_IDS = JsonCalls(
    "mistral-ids", id_length=9, trigger="[TOOL_CALLS]", before="[TOOL_CALLS]", middle="[CALL_ID]{id}[ARGS]"
)
