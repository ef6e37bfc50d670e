"""A JSON list of calls in tags: Nemotron Nano 2, Apriel, Granite 3, Phi-4."""

from pellucid.serve.chat.call_format import JsonCalls


def _list(name: str, begin: str, end: str, *marks: str) -> JsonCalls:
    return JsonCalls(
        name,
        marks=marks,
        trigger=begin,
        begin=f"{begin}[",
        before='{"name": "',
        middle='", "arguments": ',
        after="}",
        between=", ",
        end=f"]{end}",
    )


NEMOTRON = _list("nemotron", "<TOOLCALL>", "</TOOLCALL>")
APRIEL = _list("apriel", "<tool_calls>", "</tool_calls>")
GRANITE3 = _list("granite3", "<|tool_call|>", "", "<|tool_call|> followed by a JSON list")
PHI4 = _list("phi4", "<|tool_call|>", "<|/tool_call|>", "<|tool_call|>", "<|/tool_call|>")
