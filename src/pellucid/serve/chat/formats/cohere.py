"""Cohere's Command models: a list of numbered objects between two control tokens."""

from pellucid.serve.chat.call_format import JsonCalls

COHERE = JsonCalls(
    "cohere",
    trigger="<|START_ACTION|>",
    begin="<|START_ACTION|>[\n    ",
    before='{"tool_call_id": "{index}", "tool_name": "',
    middle='", "parameters": ',
    after="}",
    between=",\n    ",
    end="\n]<|END_ACTION|>",
)
