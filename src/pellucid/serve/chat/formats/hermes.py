"""Hermes, Qwen2.5, Qwen3, Granite 4, SmolLM3: a JSON object in <tool_call> tags."""

from pellucid.serve.chat.call_format import JsonCalls

HERMES = JsonCalls(
    "hermes",
    marks=("<tool_call>", '"arguments"'),
    trigger="<tool_call>",
    before='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    after="}\n</tool_call>",
    between="\n",
    bare=r'\{{1,2}\s{0,8}"name":\s?"{name}",\s{0,8}"arguments":',
)
