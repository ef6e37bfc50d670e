"""Llama 3.1, 3.2, 3.3: the whole answer is a JSON object, or several objects, without tags."""

from pellucid.serve.chat.call_format import JsonCalls

LLAMA3 = JsonCalls(
    "llama3",
    marks=('{"name": function name, "parameters": dictionary of argument name and its value}',),
    ends=("<|eom_id|>",),
    trigger='{"name": "',
    before='{"name": "',
    middle='", "parameters": ',
    after="}",
    between="; ",
    at_start=True,
    bare=r'\{\s{0,8}("type":\s?"function",\s{0,8}"name"|"function"):\s?"{name}",\s{0,8}"parameters":',
)
