"""Kimi K2: numbered calls between control tokens."""

from pellucid.serve.chat.call_format import JsonCalls

KIMI = JsonCalls(
    "kimi",
    marks=("<|tool_calls_section_begin|>", "<|tool_call_argument_begin|>"),
    trigger="<|tool_calls_section_begin|>",
    begin="<|tool_calls_section_begin|>",
    before="<|tool_call_begin|>functions.",
    middle=":{index}<|tool_call_argument_begin|>",
    after="<|tool_call_end|>",
    end="<|tool_calls_section_end|>",
)
